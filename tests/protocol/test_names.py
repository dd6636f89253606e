"""Names on a list: what may stand there, and which are taken for one another."""

from dataclasses import replace

import pytest

from pairio_protocol.allowlist import Folded, apply_ops
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import MEMBERS_MAX
from pairio_protocol.names import free_name, is_alike, name_flaw, normal_name
from pairio_protocol.signing import SigningKey

KEYS = [SigningKey(bytes([number]) * 32).peer for number in range(1, 4)]
EMPTY = Folded("lab", (KEYS[0],))


def _add(member: str, key: str = KEYS[1]) -> dict[str, object]:
    return {"op": "add", "member": member, "key": key, "roles": ["submit"]}


@pytest.mark.parametrize(
    "name",
    ["Ada", "node-3xA", "José", "Ада Лав", "Αδα", "山田", "日本のLab", "한국어", "สวัสดี", "x" * 200],
)
def test_names_of_every_script_may_stand_on_a_list(name: str) -> None:
    assert name_flaw(name) is None
    folded, _ = apply_ops(EMPTY, [_add(name)])
    assert list(folded.members) == [name]


FLAWS = [
    ("", "characters long"),
    ("x" * 201, "characters long"),
    ("a/b", "slash"),
    ("a\nb", "U+000A"),
    ("nimda\u202e", "U+202E"),  # a right-to-left override: shown as `admin`
    ("\u2066admin", "U+2066"),
    ("ad\u200bmin", "U+200B"),
    ("ad\u00admin", "U+00AD"),
    ("ad\u3164min", "U+3164"),
    ("a\ufe0fb", "U+FE0F"),
    ("\ue000", "U+E000"),
    ("a\u00a0b", "U+00A0"),
    ("🔬", "U+1F52C"),
    (" Ada", "space"),
    ("Ada  B", "two together"),
    ("Jose\u0301", "NFKC"),
    ("\uff21da", "NFKC"),
    ("\u0301Ada", "mark"),
    ("Аda", "Cyrillic and Latin"),
    ("日本Лаб", "mixes letters"),
]


@pytest.mark.parametrize(("name", "says"), FLAWS, ids=lambda v: ascii(v)[:20])
def test_a_name_that_misleads_is_refused_by_every_node(name: str, says: str) -> None:
    assert says in (name_flaw(name) or "")
    with pytest.raises(DecodeError, match="member"):
        apply_ops(EMPTY, [_add(name)])
    with pytest.raises(DecodeError, match="service name"):
        apply_ops(None, [{"op": "create", "name": name, "admins": KEYS[:1], "threshold": 1}])
    named, _ = apply_ops(EMPTY, [_add("Ada")])
    with pytest.raises(DecodeError, match="member"):
        apply_ops(named, [{"op": "rename", "member": "Ada", "to": name}])


def test_what_people_type_is_brought_to_the_form_that_lists_have() -> None:
    assert normal_name(" Jose\u0301 ") == "José"
    assert normal_name("\uff21da") == "Ada"
    assert normal_name("น้ำ") == normal_name(normal_name("น้ำ"))
    assert name_flaw(normal_name("น้ำ")) is None


ALIKE = [
    ("bob", "Bob"),
    ("bob1", "bobl"),
    ("Bill", "BiII"),
    ("lab0", "labO"),
    ("corner", "comer"),
    ("COBET", "СОВЕТ"),
    ("aca", "аса"),
    ("NANO", "ΝΑΝΟ"),
    ("νανο", "ΝΑΝΟ"),
    ("straße", "STRASSE"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_two_names_that_look_the_same_do_not_stand_on_one_list(one: str, other: str) -> None:
    assert is_alike(one, other)
    assert is_alike(other, one)
    folded, _ = apply_ops(EMPTY, [_add(one)])
    with pytest.raises(DecodeError, match="looks like"):
        apply_ops(folded, [_add(other, KEYS[2])])
    both, _ = apply_ops(folded, [_add("Eve", KEYS[2])])
    with pytest.raises(DecodeError, match="looks like"):
        apply_ops(both, [{"op": "rename", "member": "Eve", "to": other}])


@pytest.mark.parametrize(("one", "other"), [("m1", "m2"), ("José", "Jose"), ("Ada", "Adam")])
def test_names_that_differ_to_the_eye_may(one: str, other: str) -> None:
    assert not is_alike(one, other)
    folded, _ = apply_ops(EMPTY, [_add(one), _add(other, KEYS[2])])
    assert len(folded.members) == 2


def test_a_member_may_be_renamed_to_what_looks_like_his_own_name() -> None:
    folded, _ = apply_ops(EMPTY, [_add("ada"), {"op": "rename", "member": "ada", "to": "Ada"}])
    assert folded.members == {"Ada": (("submit",), (KEYS[1],))}


def test_a_list_has_at_most_4096_members() -> None:
    many: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        f"m{number}": (("read",), (f"key{number}",)) for number in range(MEMBERS_MAX - 1)
    }
    full, _ = apply_ops(replace(EMPTY, members=many), [_add("last")])
    with pytest.raises(DecodeError, match="more than 4096 members"):
        apply_ops(full, [_add("one more", KEYS[2])])
    again, _ = apply_ops(full, [{"op": "remove", "member": "m7"}, _add("one more", KEYS[2])])
    assert len(again.members) == MEMBERS_MAX


def test_an_app_that_was_removed_is_not_on_the_list_any_more() -> None:
    folded = replace(EMPTY, apps={"hello": {"name": "hello"}, "other": {"name": "other"}})
    after, removed = apply_ops(folded, [{"op": "app_remove", "app": "hello"}])
    assert (list(after.apps), removed) == (["other"], frozenset())
    with pytest.raises(DecodeError, match="no app 'hello'"):
        apply_ops(after, [{"op": "app_remove", "app": "hello"}])


def test_after_its_end_a_service_changes_no_more() -> None:
    ended, _ = apply_ops(EMPTY, [_add("Ada"), {"op": "end"}])
    assert ended.roles_of(KEYS[1]) == ()
    with pytest.raises(DecodeError, match="has ended"):
        apply_ops(ended, [_add("Bob", KEYS[2])])
    with pytest.raises(DecodeError, match="has ended"):
        apply_ops(EMPTY, [{"op": "end"}, _add("Bob", KEYS[2])])


def test_there_is_a_free_name_also_when_others_took_all_that_are_usual() -> None:
    peer = SigningKey(b"p" * 32).peer
    taken: list[str] = []
    for _ in range(110):  # about 46 ends of the id, with and without the wanted name, and more
        taken.append(free_name("dan", peer, taken))
    assert len(set(taken)) == 110
