"""What is encoded comes back, and what is not ours is refused: quickly, and by DecodeError only."""

import math
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairio_protocol.codec import pack, unpack
from pairio_protocol.documents import Link, decode, encode
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import LogId, peer_of, run_id
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import (
    DEPTH_MAX,
    FRAME_SIZE_BYTES_MAX,
    LIST_LENGTH_MAX,
    SEGMENT_RECORDS_MAX,
)
from pairio_protocol.messages import MESSAGES, Beat, Presence, Renew
from pairio_protocol.names import name_flaw, normal_name
from pairio_protocol.records import (
    ENDS,
    ISOLATIONS,
    MODES,
    RECORDS,
    End,
    Request,
    Resources,
    ResultDocument,
    Unknown,
    decode_record,
)
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain, ChangeGap, Cut, SignedChange
from pairio_protocol.signing import SigningKey, verify

KEY = SigningKey(bytes(range(32)))
PEER = SigningKey(bytes(32)).peer
CID = "bafyreifdbt5da5hbtbhcdnnmpmaabhmlchg57ixm4opiicf7jxhfiej6ua"
RAW_CID = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
#: CPU time: far above what any frame takes, far below what an attack would need.
LONG_S = 0.25

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
integers = st.integers(0, 2**63 - 1)
blobs = st.binary(max_size=60)


def _strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation that may stand in a record or message."""
    if get_origin(hint) is tuple:
        return st.lists(_strategy(get_args(hint)[0]), max_size=4).map(tuple)
    if get_origin(hint) is UnionType:
        return st.one_of(*map(_strategy, get_args(hint)))
    if is_dataclass(hint):
        return _values(hint)  # type: ignore[arg-type]
    return {int: integers, str: texts, bytes: blobs, bool: st.booleans(), type(None): st.none()}[
        hint
    ]


#: Fields whose values are not free.
_LIMITED: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Request, "mode"): st.sampled_from(MODES),
    (Request, "isolation_min"): st.sampled_from(["", *ISOLATIONS]),
    (End, "kind"): st.sampled_from(ENDS),
    (Resources, "cpu_millicores"): st.integers(1, 4_096_000),
    (Resources, "memory_mib"): st.integers(1, 2**26),
    (Resources, "gpus"): st.integers(0, 1024),
    (Resources, "time_ms"): st.integers(1, 10**9),
    (Beat, "permille"): st.none() | st.lists(st.integers(0, 1000), max_size=4).map(tuple),
    (Renew, "permille"): st.integers(0, 1000),
}


def _values(cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    given_fields = {
        f.name: _LIMITED[cls, f.name] if (cls, f.name) in _LIMITED else _strategy(hints[f.name])
        for f in fields(cls)
    }
    return st.builds(cls, **given_fields)


RECORD_CLASSES = sorted(RECORDS._kinds, key=lambda c: c.__name__)
MESSAGE_CLASSES = sorted(MESSAGES._kinds, key=lambda c: c.__name__)
any_record = st.one_of(*map(_values, RECORD_CLASSES))
any_message = st.one_of(*map(_values, MESSAGE_CLASSES))

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
    | texts
    | st.sampled_from([Link(CID), Link(RAW_CID)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(texts, plain_values, max_size=5)


# -- there and back -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", RECORD_CLASSES, ids=lambda c: c.__name__)
def test_a_record_comes_back(cls: type) -> None:
    @quick
    @given(_values(cls))
    def check(record: Any) -> None:
        assert decode_record(unpack(pack(RECORDS.to_plain(record)))) == record

    check()


@pytest.mark.parametrize("cls", MESSAGE_CLASSES, ids=lambda c: c.__name__)
def test_a_message_comes_back(cls: type) -> None:
    @quick
    @given(_values(cls))
    def check(message: Any) -> None:
        assert MESSAGES.decode(MESSAGES.encode(message)) == message

    check()


@quick
@given(documents)
def test_a_document_comes_back_and_has_one_encoding(document: dict[str, Any]) -> None:
    data = encode(document)
    assert decode(data, len(data)) == document
    assert encode(decode(data, len(data))) == data


@quick
@given(st.lists(any_record, min_size=1, max_size=4), st.binary(min_size=16, max_size=16), integers)
def test_a_segment_comes_back_with_its_hash_signature_and_records(
    records: list[Any], boot: bytes, seq: int
) -> None:
    segment = Segment.seal(KEY, CID, boot, seq % 2**62, seq % 2**31, GENESIS, records)
    again = Segment.decode(segment.encode())
    assert again == segment
    assert again.hash == segment.hash
    assert again.is_signed()
    assert again.records() == records


@quick
@given(_values(Presence))
def test_a_presence_entry_comes_back(entry: Presence) -> None:
    own = replace(entry, peer=KEY.peer)
    assert Presence.decode(own.sign(KEY)) == own


@quick
@given(texts, integers, st.dictionaries(texts, st.tuples(st.just(RAW_CID), integers, texts)))
def test_a_result_comes_back(
    text: str, number: int, outputs: dict[str, tuple[str, int, str]]
) -> None:
    result = _result(error=text, usage={text: number}, outputs=outputs, limit=f"time_ms={number}")
    assert ResultDocument.decode(result.sign(KEY)) == result


@quick
@given(texts.map(normal_name).filter(lambda t: name_flaw(t) is None), integers)
def test_a_service_change_comes_back(name: str, unix_ms: int) -> None:
    chain, change = _chain(name, unix_ms)
    assert SignedChange.decode(change.encode()) == change
    assert chain.service == change.cid


def test_a_cut_comes_back() -> None:
    cut = Cut(LogId(KEY.peer, bytes(16)), 7, bytes(32))
    assert Cut.parse(cut.plain()) == cut


# -- what others send ---------------------------------------------------------------------


def _result(**changed: Any) -> ResultDocument:
    given_values: dict[str, Any] = {
        "service": CID,
        "job": CID,
        "run": run_id(CID),
        "salt": "",
        "attempt": "p/b/1",
        "status": "completed",
        "error": "",
        "outputs": {},
        "console": RAW_CID,
        "usage": {},
        "code": CID,
        "isolation": "medium",
        "upstream": (),
        "worker": KEY.peer,
        "started_unix_ms": 1,
        "finished_unix_ms": 2,
    }
    return ResultDocument(**{**given_values, **changed})


def _chain(name: str = "lab", unix_ms: int = 0) -> tuple[Chain, SignedChange]:
    chain = Chain()
    create = {"op": "create", "name": name, "admins": [KEY.peer], "threshold": 1, "nonce": "n"}
    change = chain.propose([create], [KEY], unix_ms)
    chain.add(change)
    return chain, change


def _job() -> dict[str, Any]:
    return {
        "type": "pairio/job",
        "v": 1,
        "app": "a",
        "processor": "p",
        "code": CID,
        "inputs": [{"name": "i", "base_name": "i", "source": {"job": CID, "output": "o"}}],
        "outputs": [{"name": "o", "base_name": "o.txt"}],
        "parameters": [{"name": "n", "value": 1.5}],
    }


def _add_change(data: bytes) -> None:
    chain, _ = _chain()
    with suppress(ChangeGap):  # a DecodeError that says what to do
        chain.add(SignedChange.decode(data))


def _read_segment(data: bytes) -> None:
    segment = Segment.decode(data)
    segment.is_signed()
    segment.records()


def _samples() -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    request = Request(
        *(encode(_job()), "use", "", Resources(1, 1, 0, 1), "", ("t",), "", 0, (), 1, 1, 1)
    )
    chain, _ = _chain()
    ops: list[dict[str, Any]] = [
        {"op": "add", "member": "m", "key": PEER, "roles": ["submit"]},
        {"op": "role", "member": "m", "roles": ["read"]},
        {"op": "policy", "policy": {"isolation_min": "medium"}},
        {"op": "app", "app": {"name": "a", "bundle": RAW_CID, "processors": [
            {"name": "p", "executable": "x", "parameters": [
                {"name": "n", "type": "int", "defaultValue": 1, "options": [1]}]}]}},
        {"op": "remove", "member": "m"},
        {"op": "admins", "admins": [KEY.peer], "threshold": 1},
    ]  # fmt: skip
    presence = Presence(CID, KEY.peer, bytes(16), 1, 1, True, 1, 1, 0, 1, 0, "medium", ("/a",))
    message = MESSAGES.encode(MESSAGES.decode(pack(["bid", CID, ["a", "b"]])))
    outputs = {"o": (RAW_CID, 3, "o.txt")}
    return {
        "frame": (MESSAGES.decode, message),
        "segment": (
            _read_segment,
            Segment.seal(KEY, CID, bytes(16), 0, 0, GENESIS, [request]).encode(),
        ),
        "record": (lambda data: decode_record(unpack(data)), pack(RECORDS.to_plain(request))),
        "change": (_add_change, chain.propose(ops, [KEY], 1).encode()),
        "result": (ResultDocument.decode, _result(outputs=outputs, usage={"cpu_ms": 1}).sign(KEY)),
        "presence": (Presence.decode, presence.sign(KEY)),
        "job": (decode_job, encode(_job())),
        "document": (lambda data: decode(data, 60_000), encode({"a": [Link(CID), 1.5, {"b": -1}]})),
    }


SAMPLES = _samples()


def _takes_little_time(read: Callable[[], object]) -> None:
    """Slow three times running: once may be a collection of garbage that fell into it."""
    took_s = []
    for _ in range(3):
        began = time.thread_time()
        read()
        took_s.append(time.thread_time() - began)
        if took_s[-1] < LONG_S:
            return
    raise AssertionError(f"took {took_s} s, allowed is {LONG_S} s")


def _refused_or_taken(read: Callable[[bytes], object], data: bytes) -> None:
    def once() -> None:
        with suppress(DecodeError):
            read(data)

    _takes_little_time(once)


def _refused(read: Callable[[], object]) -> None:
    with pytest.raises(DecodeError):
        read()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_taken_as_it_is(name: str) -> None:
    read, data = SAMPLES[name]
    read(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_random_bytes_raise_nothing_else(name: str) -> None:
    read, _ = SAMPLES[name]

    @quick
    @given(st.binary(max_size=400))
    def check(data: bytes) -> None:
        _refused_or_taken(read, data)

    check()


@pytest.mark.parametrize("name", SAMPLES)
def test_mutated_bytes_raise_nothing_else(name: str) -> None:
    read, sample = SAMPLES[name]

    @settings(quick, max_examples=200)
    @given(st.integers(0, len(sample)), st.integers(0, 4), st.binary(max_size=6))
    def check(at: int, gone: int, put: bytes) -> None:
        _refused_or_taken(read, sample[:at] + put + sample[at + gone :])

    check()


odd_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, -1, 0, 2**63, 2**64 - 1, 1.0, 1.5, "", "x", "\0", "a/b", "..", [], [[]],
     [{}], [1], ["x"], {}, {"a": 1}, {"": []}, [None], Link(CID)]
)  # fmt: skip


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list)
        else ()
    )  # fmt: skip
    return [at, *(path for key, item in inner for path in _paths(item, (*at, key)))]


def _with(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    if not path:
        return put
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], put)
    return copy


def _sign_result(document: dict[str, Any]) -> bytes:
    from pairio_protocol.signing import signing_input

    body = {k: v for k, v in document.items() if k != "signature"}
    signature = KEY.sign(signing_input("result", encode(body))).hex()
    return encode({**body, "signature": signature})


def _sign_change(document: dict[str, Any]) -> bytes:
    from pairio_protocol.signing import sha256, signing_input

    body = encode(document)
    return SignedChange(
        body, ((KEY.peer, KEY.sign(signing_input("change", sha256(body)))),)
    ).encode()


_DOCUMENTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], bytes]]] = {
    "job": (_job(), encode),
    "result": (decode(SAMPLES["result"][1], 60_000), _sign_result),
    "change": (decode(SignedChange.decode(SAMPLES["change"][1]).body, 60_000), _sign_change),
}


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_a_well_signed_document_with_an_odd_value_raises_nothing_else(name: str) -> None:
    document, seal = _DOCUMENTS[name]
    read, _ = SAMPLES[name]
    paths = [p for p in _paths(document) if p]

    @settings(quick, max_examples=400)
    @given(st.sampled_from(paths), odd_values)
    def check(path: tuple[Any, ...], put: Any) -> None:
        _refused_or_taken(read, seal(_with(document, path, put)))

    check()


@pytest.mark.parametrize("registry", [RECORDS, MESSAGES], ids=["records", "messages"])
def test_a_field_of_another_type_raises_nothing_else(registry: Any) -> None:
    samples = any_record if registry is RECORDS else any_message

    @settings(quick, max_examples=300)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        plain = registry.to_plain(data.draw(samples))
        path = data.draw(st.sampled_from(_paths(plain)))
        put = data.draw(odd_values.filter(lambda v: not isinstance(v, Link)))
        _refused_or_taken(
            lambda raw: registry.from_plain(unpack(raw)), pack(_with(plain, path, put))
        )

    check()


# -- what is never taken ------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -0.0, 2**64, -(2**63) - 1, b"bytes", {1: 2}, {b"k": 1},
     ("tuple",), {1, 2}, "\ud800", Link("bafy"), object()],
    ids=repr,
)  # fmt: skip
def test_a_document_cannot_hold(value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^\$\.a\[0\]"):
        encode({"a": [value]})


def _nested(depth: int, value: Any) -> dict[str, Any]:
    for _ in range(depth):
        value = {"a": value}
    return value  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", [1, "text", {}, []], ids=repr)
def test_a_document_is_at_most_so_deep(value: Any) -> None:
    deepest = _nested(DEPTH_MAX, value)
    assert decode(encode(deepest), 1000) == deepest
    with pytest.raises(DefinitionError, match="deeper"):
        encode({"a": deepest})
    with pytest.raises(DecodeError, match="deeper"):
        decode(b"\xa1\x61a" + encode(deepest), 1000)


#: CBOR that other writers may make: {"a": ...} with a value that is not the one encoding.
_NOT_CANONICAL = {
    "nan": "a16161fb7ff8000000000000",
    "infinity": "a16161fb7ff0000000000000",
    "minus zero": "a16161fb8000000000000000",
    "half float": "a16161f93c00",
    "single float": "a16161fa3f800000",
    "long integer": "a161611801",
    "negative beyond 64 bits": "a161613bffffffffffffffff",
    "big number": "a16161c249010000000000000000",
    "plain bytes": "a161614101",
    "bytes like a link": "a161615824" + "01711220" + "00" * 32,
    "undefined": "a16161f7",
    "endless map": "bf616101ff",
    "key that is a number": "a10101",
    "key twice": "a2616101616101",
    "keys out of order": "a2616201616101",
    "not UTF-8": "a16161" + "61ff",
    "another tag": "a16161c100",
    "something behind it": "a000",
    "nothing": "",
    "a list": "80",
    "deep": "a16161" + "81" * 17 + "01",
    "very deep": "81" * 40_000,
    "a list of 2^63": "9b7fffffffffffffff",
    "a text of 2^63": "7b7fffffffffffffff",
}


@pytest.mark.parametrize("name", _NOT_CANONICAL)
def test_bytes_that_are_no_document_are_refused(name: str) -> None:
    data = bytes.fromhex(_NOT_CANONICAL[name])
    _takes_little_time(lambda: _refused(lambda: decode(data, 60_000)))


_BAD_FRAMES = {
    "nothing": b"",
    "two values": pack([]) + pack([]),
    "cut short": pack(["bid", CID, ["a"]])[:-1],
    "not UTF-8": b"\x91\xa1\xff",
    "a key of bytes": b"\x81\xc4\x01a\x01",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "an extension": b"\xd4\x05\x01",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x01",
    "a long list": pack([None] * (LIST_LENGTH_MAX + 1)),
    "lists that claim a lot": (b"\xdd\x00\x00\xea\x60" * 1000).ljust(FRAME_SIZE_BYTES_MAX, b"\xc0"),
    "very deep": b"\x91" * 50_000,
    "too large": bytes(FRAME_SIZE_BYTES_MAX + 1),
}


@pytest.mark.parametrize("name", _BAD_FRAMES)
def test_bytes_that_are_no_frame_are_refused(name: str) -> None:
    _takes_little_time(lambda: _refused(lambda: unpack(_BAD_FRAMES[name])))


def test_lists_that_claim_more_than_they_hold_take_little_memory() -> None:
    nested = b"".join(b"\xdd" + LIST_LENGTH_MAX.to_bytes(4, "big") for _ in range(1000))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            unpack(nested.ljust(FRAME_SIZE_BYTES_MAX, b"\xc0"))
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("resources", [[0, 1, 0, 1], [1, 2**40, 0, 1], [1, 1, 0, 0], [1, 1, 0]])
def test_resources_beyond_the_limits_are_a_decode_error(resources: list[int]) -> None:
    plain = unpack(SAMPLES["record"][1])
    with pytest.raises(DecodeError):
        decode_record([*plain[:4], resources, *plain[5:]])


def test_an_unknown_record_is_kept_but_not_at_any_depth() -> None:
    plain = ["a kind of 2027", {"x": [1.5, -1]}]
    assert decode_record(plain) == Unknown(plain)
    deep: Any = 1
    for _ in range(DEPTH_MAX + 1):
        deep = [deep]
    with pytest.raises(DecodeError, match="deeper"):
        decode_record(["a kind of 2027", deep])


def test_a_segment_says_how_many_records_it_holds() -> None:
    segment = Segment.seal(KEY, CID, bytes(16), 0, 0, GENESIS, [End("r", "r", "a", "infra", "", 0)])
    for count in (0, SEGMENT_RECORDS_MAX + 1):
        with pytest.raises(DecodeError):
            Segment.decode(replace(segment, count=count).encode())
    with pytest.raises(DecodeError, match="holds others"):
        Segment.decode(replace(segment, count=2).encode()).records()


def test_a_truth_value_is_no_number_in_a_segment() -> None:
    plain = unpack(Segment.seal(KEY, CID, bytes(16), 0, 0, GENESIS, [_end()]).encode())
    assert Segment.decode(pack(plain)).is_signed()
    for place in (3, 4, 5):
        with pytest.raises(DecodeError):
            Segment.decode(pack([*plain[:place], False, *plain[place + 1 :]]))


def _end() -> End:
    return End("r", "r", "a", "infra", "", 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"salt": 1}, {"attempt": 1}, {"usage": {"cpu_ms": True}}, {"started": 1.0}, {"v": True},
        {"status": "lost"}, {"run": "0" * 64}, {"upstream": [1]}, {"extra": 1}, {"worker": "x"},
        {"finished": -1},
    ],
    ids=repr,
)  # fmt: skip
def test_a_signed_result_with_a_wrong_field_is_refused(changed: dict[str, Any]) -> None:
    document, _ = _DOCUMENTS["result"]
    ResultDocument.decode(_sign_result(document))
    with pytest.raises(DecodeError):
        ResultDocument.decode(_sign_result({**document, **changed}))


def test_a_result_has_one_spelling_of_its_signature() -> None:
    document, _ = _DOCUMENTS["result"]
    with pytest.raises(DecodeError):
        ResultDocument.decode(encode({**document, "signature": document["signature"].upper()}))


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": [{"name": "i", "base_name": "../../x", "source": {"cid": RAW_CID}}]},
        {"inputs": [{"name": "i", "base_name": "", "source": {"cid": RAW_CID}}]},
        {"inputs": [{"name": "i", "base_name": "i", "source": {"cid": "x"}}]},
        {"inputs": [{"name": "i", "base_name": "i", "source": {"cid": RAW_CID, "url": "x"}}]},
        {"inputs": [{"name": "i", "base_name": "i"}]},
        {"inputs": {}},
        {"outputs": [{"name": "o", "base_name": "a/b"}]},
        {"outputs": [{"name": "b", "base_name": "b"}, {"name": "a", "base_name": "a"}]},
        {"parameters": [{"name": "n", "value": 1}, {"name": "n", "value": 2}]},
        {"code": "x"}, {"v": 2}, {"type": "pairio/result"}, {"more": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_a_job_document_with_a_wrong_field_is_refused(changed: dict[str, Any]) -> None:
    decode_job(encode(_job()))
    with pytest.raises(DecodeError):
        decode_job(encode({**_job(), **changed}))


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": True}, {"v": 2}, {"prev": [CID]}, {"issued": "now"}, {"more": 1}, {"over": [1]},
        {"ops": [{"op": "add", "member": "m", "key": KEY.peer, "roles": [["submit"]]}]},
        {"ops": [{"op": "admins", "admins": [[KEY.peer]], "threshold": 1}]},
        {"ops": [{"op": "admins", "admins": [KEY.peer], "threshold": True}]},
        {"ops": [{"op": "policy", "policy": {"isolation_min": "much"}}]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_signed_change_with_a_wrong_field_is_refused(changed: dict[str, Any]) -> None:
    document, _ = _DOCUMENTS["change"]
    _add_change(_sign_change(document))
    with pytest.raises(DecodeError):
        chain, _ = _chain()
        chain.add(SignedChange.decode(_sign_change({**document, **changed})))


def test_a_signature_has_64_bytes_wherever_it_stands() -> None:
    segment = unpack(SAMPLES["segment"][1])
    change = unpack(SAMPLES["change"][1])
    presence = unpack(SAMPLES["presence"][1])
    for read, plain in (
        (Segment.decode, [*segment[:9], bytes(63)]),
        (SignedChange.decode, [change[0], [[KEY.peer, bytes(65)]]]),
        (Presence.decode, [presence[0], b""]),
    ):
        with pytest.raises(DecodeError):
            read(pack(plain))


def test_a_signature_counts_for_its_signer_and_for_what_was_signed() -> None:
    # RFC 8032, section 7.1, test 2
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    stranger = peer_of(bytes.fromhex(public))
    for peer, message, signed in (
        (stranger, b"\x72", signature),
        (KEY.peer, b"one", KEY.sign(b"one")),  # of this process, which knows
    ):
        assert verify(peer, message, signed)
        assert not verify(peer, b"other", signed)
        assert not verify(SigningKey(bytes(32)).peer, message, signed)
        assert not verify(peer, message, signed[:-1] + b"\xff")
