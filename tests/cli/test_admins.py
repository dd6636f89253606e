"""The commands of admins: what they ask of the node, what they print, files that go round."""

import base64
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pairio_cli.times import ago_or_iso
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from tests.cli.conftest import Run
from tests.cli.test_commands import APP, SERVICE
from tests.sdk.fake_node import FakeNode

ADA, BOB = "12D3KooWadaadaadaada", "12D3KooWbobbobbobbob"
PROPOSAL: dict[str, Any] = {
    "id": "bafyproposal",
    "epoch": 7,
    "issuedUnixMs": 1_767_225_600_000,
    "does": ["renames 'Bob' to 'Eve'", "removes 'Ada'"],
    "cuts": 3,
    "proposedBy": {"peerId": ADA, "member": "Ada"},
    "signedBy": [{"peerId": ADA, "member": "Ada"}],
    "missing": [{"peerId": BOB, "member": "Bob"}],
    "needed": 2,
    "have": 1,
    "neededAfter": None,
    "haveAfter": None,
    "fits": True,
    "data": "cHJvcG9zYWw=",
}
LOG: dict[str, Any] = {
    "type": "pairio/service-log",
    "serviceName": "lab",
    "serviceId": "bafyservice",
    "epoch": 1,
    "head": "bafyhead",
    "losingHeads": ["bafyloser"],
    "entries": [
        {
            "epoch": 1,
            "id": "bafyhead",
            "previous": "bafyservice",
            "issuedUnixMs": 1_767_225_600_000,
            "signedBy": PROPOSAL["signedBy"],
            "needed": 1,
            "does": ["removes 'Bob'"],
            "ops": [],
            "cuts": 2,
            "over": ["bafyover"],
            "fate": "counts",
        },
        {
            "epoch": 1,
            "id": "bafyloser",
            "previous": "bafyservice",
            "issuedUnixMs": 1_767_225_600_000,
            "signedBy": [],
            "needed": 1,
            "does": ["removes 'Ada'"],
            "ops": [],
            "cuts": 0,
            "over": [],
            "fate": "lost",
        },
    ],
}
HISTORY = [
    {
        "epoch": 3,
        "issuedUnixMs": 0,
        "signedBy": [],
        "app": "hello",
        "bundle": "bafy",
        "does": "adds",
    }
]


def act(**said: Any) -> dict[str, Any]:
    """Return what the node answers to an act."""
    return {**SERVICE, "changed": True, "proposal": None, **said}


@pytest.fixture
def lab(node: FakeNode) -> FakeNode:
    """A node that does everything it is asked."""
    at = "/services/lab"
    node.on("GET", at, SERVICE)
    for path in ("grant", "revoke", "rename"):
        node.on("POST", f"{at}/{path}", act(member="Eve"))
    node.on("POST", f"{at}/admins", act())
    node.on("DELETE", at, act())
    node.on("POST", f"{at}/sign-over", act(over=["bafyloser"]))
    node.on("DELETE", f"{at}/apps/hello", act(app="hello"))
    node.on("POST", f"{at}/apps", {**APP, **act(updated=True)})
    node.on("GET", f"{at}/app-history", {"history": HISTORY})
    node.on("GET", f"{at}/proposals", {"proposals": [PROPOSAL]})
    node.on("POST", f"{at}/proposals/look", PROPOSAL)
    node.on("POST", f"{at}/proposals/sign", act(signed="bafyproposal", data="c2lnbmVk"))
    node.on("POST", f"{at}/proposals/x/renew", act(proposal=PROPOSAL, changed=False))
    node.on("DELETE", f"{at}/proposals/x", act(withdrawn="bafyproposal", changed=False))
    node.on("GET", f"{at}/log", LOG)
    return node


READING: list[tuple[list[str], str, Any]] = [
    (["service", "members", "lab"], "12D3KooWada  yes", SERVICE["members"]),
    (["service", "admins", "lab"], "1 of 1 sign", {"admins": ["12D3KooWada"], "threshold": 1}),
    (["service", "proposals", "lab"], "missing: Bob (bbobbobbob)", [PROPOSAL]),
    (["service", "log", "lab"], "signed by nobody  LOST", LOG),
    (["app", "history", "lab"], "adds", HISTORY),
    (["app", "history", "lab", "hello"], "adds", HISTORY),
]


@pytest.mark.parametrize(("command", "says", "document"), READING, ids=lambda v: str(v)[:30])
def test_a_reading_command_prints_words_or_one_document(
    command: list[str], says: str, document: Any, lab: FakeNode, run: Run
) -> None:
    words = run(*command)
    assert (words.code, words.err) == (0, "")
    assert says in words.out
    assert json.loads(run(*command, "--json").out) == document


DOING: list[tuple[list[str], tuple[str, str, Any], str]] = [
    (
        ["service", "grant", "lab", BOB, "--roles", "submit,compute", "--name", "Bob"],
        ("POST", "grant", {"who": BOB, "roles": ["submit", "compute"], "name": "Bob"}),
        "'Eve' is in 'lab' with submit,compute",
    ),
    (
        ["service", "add-member", "lab", BOB, "--roles", "submit,compute"],
        ("POST", "grant", {"who": BOB, "roles": ["submit", "compute"], "name": None}),
        "'Eve' is in 'lab' with submit,compute",
    ),
    (
        ["service", "revoke", "lab", "Bob"],
        ("POST", "revoke", {"who": "Bob", "roles": None, "sinceUnixMs": None}),
        "off the list",
    ),
    (
        ["service", "revoke", "lab", "Bob", "--roles", "submit", "--since", "1970-01-01T00:00:02Z"],
        ("POST", "revoke", {"who": "Bob", "roles": ["submit"], "sinceUnixMs": 2000}),
        "no role submit",
    ),
    (
        ["service", "rename", "lab", "Bob", "Eve"],
        ("POST", "rename", {"member": "Bob", "name": "Eve"}),
        "'Bob' is called 'Eve' now",
    ),
    (
        ["service", "admins", "lab", "--set", f"{ADA},{BOB}", "--threshold", "2"],
        ("POST", "admins", {"admins": [ADA, BOB], "threshold": 2}),
        "2 of 2 admins",
    ),
    (
        ["service", "admins", "lab", "--threshold", "1"],
        ("POST", "admins", {"admins": ["12D3KooWada"], "threshold": 1}),
        "1 of 1",
    ),
    (["service", "delete", "lab", "--yes"], ("DELETE", "", None), "has ended"),
    (["service", "sign-over", "lab"], ("POST", "sign-over", None), "over 1 branch"),
    (["app", "remove", "lab", "hello"], ("DELETE", "apps/hello", None), "Removed 'hello'"),
]


@pytest.mark.parametrize(("command", "asked", "says"), DOING, ids=lambda v: str(v)[:30])
def test_an_act_asks_the_node_and_says_what_it_did(
    command: list[str], asked: tuple[str, str, Any], says: str, lab: FakeNode, run: Run
) -> None:
    done = run(*command)
    assert (done.code, done.out) == (0, "")
    assert says in done.err
    method, path, body = asked
    found = lab.calls(method, f"/services/lab/{path}".rstrip("/"))
    assert [a.body for a in found] == [body]
    json.loads(run(*command, "--json").out)


def test_an_act_that_others_have_to_sign_prints_the_proposal(lab: FakeNode, run: Run) -> None:
    lab.on("POST", "/services/lab/revoke", act(changed=False, proposal=PROPOSAL))
    done = run("service", "revoke", "lab", "Bob")
    assert (done.code, done.out) == (0, "bafyproposal\n")
    assert "waits for 1 more of: Bob (bbobbobbob)" in done.err
    assert "pairio service sign lab" in done.err
    lab.on("POST", "/services/lab/revoke", act(changed=False))
    assert "Nothing to do" in run("service", "revoke", "lab", "Bob").err


def test_an_update_says_so(lab: FakeNode, run: Run) -> None:
    for command in ("install", "update"):
        done = run("app", command, "lab", "hello_world")
        assert (done.code, done.out) == (0, "hello\n")
        assert "Updated 'hello' with processors greet" in done.err


def test_the_service_may_be_called_otherwise_here(lab: FakeNode, run: Run) -> None:
    done = run("service", "rename", "lab", "--here", "mine")
    assert (done.code, lab.asked[-1].body) == (0, {"name": "mine"})


# -- delete asks --------------------------------------------------------------------------


def test_delete_does_nothing_without_a_yes_where_nobody_can_be_asked(
    lab: FakeNode, run: Run
) -> None:
    refused = run("service", "delete", "lab")
    assert refused.code == 1
    assert "add --yes" in refused.err
    assert lab.calls("DELETE", "/services/lab") == []


@pytest.mark.parametrize(("typed", "code", "calls"), [("lab\n", 0, 1), ("lob\n", 1, 0)])
def test_delete_asks_for_the_name_again_on_a_terminal(
    typed: str,
    code: int,
    calls: int,
    lab: FakeNode,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "typed").write_text(typed)
    with (tmp_path / "typed").open() as terminal:
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        done = run("service", "delete", "lab")
    assert done.code == code
    assert "2 members" in done.err
    assert len(lab.calls("DELETE", "/services/lab")) == calls


# -- proposals by file --------------------------------------------------------------------


def test_a_proposal_goes_to_a_file_is_signed_there_and_comes_back(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "change.json"
    written = run("service", "propose", "lab", "--file", str(file))
    assert (written.code, written.out) == (0, "bafyproposal\n")
    first = json.loads(file.read_text())
    assert (first["type"], first["data"]) == ("pairio/proposal", PROPOSAL["data"])
    signed = run("service", "sign", "lab", "--file", str(file))
    assert (signed.code, signed.out) == (0, "bafyproposal\n")
    assert "has taken effect" in signed.err
    [asked] = lab.calls("POST", "/services/lab/proposals/sign")
    assert asked.body == {"id": "", "data": PROPOSAL["data"]}
    assert json.loads(file.read_text()) == {**first, "data": "c2lnbmVk"}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["change.json"]


@pytest.mark.parametrize(("typed", "code", "signs"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 130, 0)])
def test_on_a_terminal_it_is_shown_and_asked_before_one_signs(
    typed: str,
    code: int,
    signs: int,
    lab: FakeNode,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "typed").write_text(typed)
    with (tmp_path / "typed").open() as terminal:
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        done = run("service", "sign", "lab", "x")
    assert done.code == code
    assert "renames 'Bob' to 'Eve'" in done.out
    assert "counts 3 logs up to" in done.out
    assert len(lab.calls("POST", "/services/lab/proposals/sign")) == signs


def test_signing_says_who_is_missing_yet(lab: FakeNode, run: Run) -> None:
    waiting = act(signed="bafyproposal", data="x", changed=False, proposal=PROPOSAL)
    lab.on("POST", "/services/lab/proposals/sign", waiting)
    done = run("service", "sign", "lab", "x")
    assert "waits for more of: Bob" in done.err
    assert lab.asked[-1].body == {"id": "x", "data": None}


def test_a_stale_proposal_says_how_it_is_made_anew(lab: FakeNode, run: Run) -> None:
    lab.on("GET", "/services/lab/proposals", {"proposals": [{**PROPOSAL, "fits": False}]})
    assert "--renew bafyproposal"[:8] in run("service", "proposals", "lab").out
    renewed = run("service", "propose", "lab", "--renew", "x")
    assert (renewed.code, renewed.out) == (0, "bafyproposal\n")


def test_withdraw_says_that_others_keep_it(lab: FakeNode, run: Run) -> None:
    done = run("service", "withdraw", "lab", "x")
    assert (done.code, done.out) == (0, "bafyproposal\n")
    assert "stay with them" in done.err


# -- the log ------------------------------------------------------------------------------


def _log_file(path: Path, **changed: Any) -> Path:
    key = SigningKey(bytes(32))
    chain = Chain()
    create = {"op": "create", "name": "lab", "admins": [key.peer], "threshold": 1, "nonce": "00"}
    for ops in ([create], [{"op": "add", "member": "A", "key": key.peer, "roles": ["read"]}]):
        chain.add(chain.propose(ops, [key], 1000))
    changes = [base64.b64encode(c.encode()).decode() for c in chain.changes(-1)]
    document = {
        "type": "pairio/service-log",
        "serviceId": chain.service,
        "head": chain.head,
        "changes": changes,
        **changed,
    }
    path.write_text(json.dumps(document))
    return path


def test_an_exported_log_is_verified_without_a_node(run: Run, tmp_path: Path) -> None:
    file = _log_file(tmp_path / "log.json")
    done = run("service", "verify-log", str(file))
    assert done.code == 0
    assert "adds member 'A'" in done.out
    assert "Verified 2 changes" in done.err
    shown = json.loads(run("service", "verify-log", str(file), "--json").out)
    assert (shown["epoch"], len(shown["entries"])) == (1, 2)


def test_the_log_is_exported_with_its_changes(lab: FakeNode, run: Run, tmp_path: Path) -> None:
    lab.on("GET", "/services/lab/log", {**LOG, "changes": ["eA=="]})
    file = tmp_path / "out.json"
    done = run("service", "log", "lab", "--export", str(file))
    assert (done.code, done.out) == (0, "")
    assert lab.asked[-1].query == {"changes": "true"}
    assert json.loads(file.read_text())["changes"] == ["eA=="]


def _bent(path: Path) -> Path:
    document = json.loads(_log_file(path).read_text())
    raw = bytearray(base64.b64decode(document["changes"][1]))
    raw[-1] ^= 1  # of the signature
    document["changes"][1] = base64.b64encode(raw).decode()
    path.write_text(json.dumps(document))
    return path


def test_a_log_that_was_bent_does_not_verify(run: Run, tmp_path: Path) -> None:
    wrong = [
        (_bent(tmp_path / "a"), "0 admins signed"),
        (_log_file(tmp_path / "b", changes=[]), "no changes"),
        (_log_file(tmp_path / "c", changes=["%"]), "does not verify"),
        (_log_file(tmp_path / "d", changes=[7]), "does not verify"),
        (_log_file(tmp_path / "e", head="bafyother"), "says head"),
        (_log_file(tmp_path / "f", serviceId="bafyother"), "says serviceId"),
        (_log_file(tmp_path / "g", type="other"), "no exported log"),
    ]
    missing = json.loads(_log_file(tmp_path / "h").read_text())
    cut = _log_file(tmp_path / "h", changes=missing["changes"][1:])
    for file, says in [*wrong, (cut, "not known here")]:
        done = run("service", "verify-log", str(file))
        assert done.code == 1
        assert done.out == ""
        assert says in done.err, file


# -- mistakes -----------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], int, str]] = [
    (["service", "grant", "lab", BOB], 2, "--roles"),
    (["service", "grant", "nix", BOB, "--roles", "read"], 1, "nix"),
    (["service", "revoke", "nix", "Bob"], 1, "nix"),
    (["service", "revoke", "lab", "Bob", "--since", "soon"], 2, "--since is 'soon'"),
    (["service", "revoke", "lab", "Bob", "--since", "²h"], 2, "'²h'"),
    (["service", "rename", "lab", "Bob"], 2, "the new name"),
    (["service", "rename", "lab", "Bob", "Eve", "--here", "x"], 2, "alone"),
    (["service", "admins", "lab", "--threshold", "0"], 2, "threshold"),
    (["service", "delete", "nix", "--yes"], 1, "nix"),
    (["service", "propose", "lab"], 2, "--file FILE or --renew ID"),
    (["service", "propose", "lab", "--file", "/nowhere/x"], 1, "cannot write"),
    (["service", "sign", "lab", "--file", "/nowhere"], 1, "cannot read /nowhere"),
    (["service", "sign", "nix"], 1, "nix"),
    (["service", "withdraw", "lab", "nix"], 1, "nix"),
    (["service", "withdraw", "lab"], 2, "Missing argument"),
    (["service", "log", "nix"], 1, "nix"),
    (["service", "verify-log", "/nowhere"], 1, "cannot read"),
    (["app", "remove", "lab", "nix"], 1, "nix"),
    (["app", "update", "nix", "hello_world"], 1, "nix"),
    (["service", "remove-member", "lab", BOB], 2, "No such command"),
    (["service", "add-member", "lab", BOB], 2, "--roles"),
]


@pytest.mark.parametrize(("command", "code", "says"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_answered_in_words_with_a_hint(
    command: list[str], code: int, says: str, lab: FakeNode, run: Run
) -> None:
    wrong = run(*command)
    assert (wrong.code, wrong.out) == (code, "")
    assert says in wrong.err
    assert wrong.err.startswith("error: ")
    assert "\n\nhint: " in wrong.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "pairio/proposal"}', "[" * 100_000])
def test_a_file_that_is_no_proposal_is_said_to_be_none(
    text: str, lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    done = run("service", "sign", "lab", "--file", str(file))
    assert done.code == 1
    assert "hint: " in done.err
    assert lab.asked == []


def test_times_are_ago_or_iso() -> None:
    now_ms = datetime.now().timestamp() * 1000
    assert abs(now_ms - 7_200_000 - ago_or_iso("2h", "--since")) < 60_000
    assert ago_or_iso("1970-01-01T00:00:01+00:00", "--since") == 1000
    assert ago_or_iso("1969-01-01", "--since") == 0
