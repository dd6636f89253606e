"""Commands about joining and leaving: the link first on stdout, the rest on stderr."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.sdk.fake_node import FakeNode

LINK = "pairio:abc"
MADE = {
    "link": LINK,
    "words": "lusab-babad-gutih-tugad",
    "qr": "##QR##",
    "serviceName": "lab",
    "serviceId": "bafyservice",
    "roles": ["submit"],
    "uses": 2,
    "expiresUnixMs": 1_800_000_000_000,
    "needsApproval": False,
}
JOINED = {
    "state": "joined",
    "serviceId": "bafyservice",
    "serviceName": "lab",
    "member": "Ada",
    "roles": ["compute", "submit"],
    "note": None,
    "words": MADE["words"],
    "already": False,
}
WAITING = {
    "state": "waiting",
    "serviceId": "bafyservice",
    "serviceName": "lab",
    "code": "",
    "message": "no member of the link has answered yet",
    "hint": "it goes on in the background",
    "words": MADE["words"],
}


def test_the_link_is_the_first_word_on_stdout_and_nothing_else(node: FakeNode, run: Run) -> None:
    node.on("POST", "/services/lab/invitations", MADE)
    ran = run("service", "invite", "lab", "--roles", "submit", "--expires", "2h", "--uses", "2")
    assert (ran.code, ran.out) == (0, f"{LINK}\n")
    assert "words: lusab-babad-gutih-tugad" in ran.err
    assert "At most 2 may join 'lab' with roles submit, until 20" in ran.err
    assert "QR" not in ran.err, "only on a terminal"
    body = {"roles": ["submit"], "uses": 2, "expiresSec": 7200, "approve": False}
    assert [asked.body for asked in node.calls("POST", "/services/lab/invitations")] == [body]


def test_a_link_that_needs_approval_says_so(node: FakeNode, run: Run) -> None:
    made = {**MADE, "needsApproval": True, "expiresUnixMs": None}
    node.on("POST", "/services/lab/invitations", made)
    ran = run("service", "invite", "lab", "--approve")
    assert "pairio service requests lab" in ran.err
    assert json.loads(run("service", "invite", "lab", "--approve", "--json").out)["link"] == LINK


def test_a_wrong_expiry_is_refused_with_what_is_allowed(node: FakeNode, run: Run) -> None:
    ran = run("service", "invite", "lab", "--expires", "soon")
    assert ran.code == 2
    assert "30m, 12h, 7d" in ran.err


def test_join_says_what_as_whom_and_with_which_roles(node: FakeNode, run: Run) -> None:
    node.on("POST", "/joins", {**JOINED, "note": "it runs no jobs"})
    ran = run("join", LINK, "--name", "Ada", "--roles", "submit")
    assert (ran.code, ran.out) == (0, "lab\n")
    assert "Joined 'lab' as 'Ada' with roles compute,submit" in ran.err
    assert "note: it runs no jobs" in ran.err
    body = node.calls("POST", "/joins")[0].body
    assert (body["link"], body["name"], body["roles"]) == (LINK, "Ada", ["submit"])


def test_who_is_in_already_is_told_so(node: FakeNode, run: Run) -> None:
    node.on("POST", "/joins", {**JOINED, "already": True})
    ran = run("join", LINK, "--name", "Eve")
    assert (ran.code, ran.out) == (0, "lab\n")
    assert "This node is in 'lab' already, as 'Ada' with roles" in ran.err


def test_join_waits_and_then_goes_on_in_the_background(node: FakeNode, run: Run) -> None:
    node.on("POST", "/joins", WAITING)
    node.on("GET", "/joins/bafyservice", {k: v for k, v in WAITING.items() if k != "words"})
    ran = run("join", LINK, "--timeout", "0.2")
    assert ran.code == 4
    assert "not joined 'lab' yet: no member of the link" in ran.err
    assert "hint: it goes on in the background" in ran.err
    node.on("GET", "/joins/bafyservice", {k: v for k, v in JOINED.items() if k != "words"})
    ran = run("join", LINK, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["words"] == MADE["words"]


@pytest.mark.parametrize("status", [400, 404])
def test_a_refusal_is_told_with_what_to_do(node: FakeNode, run: Run, status: int) -> None:
    words = "not joined 'lab': the invitation has expired"
    node.refuse("POST", "/joins", status, words, "ask anew")
    ran = run("join", LINK)
    assert ran.code == 1
    assert "the invitation has expired" in ran.err
    assert "hint: ask anew" in ran.err


COMMANDS: list[tuple[tuple[str, ...], str, str, Any, str]] = [
    (("invitations", "lab"), "GET", "/services/lab/invitations",
     {"invitations": [{"key": "12D3KooWtoken12345", "roles": ["submit"], "used": 1, "uses": 2,
                       "expiresUnixMs": 0, "state": "used_up"}]}, "1 of 2  used up  19"),
    (("uninvite", "lab", "abc"), "POST", "/services/lab/uninvite", {"key": "k"},
     "Withdrawn"),
    (("link-device", "lab"), "POST", "/services/lab/devices", MADE, "One device of yours"),
    (("requests", "lab"), "GET", "/services/lab/requests",
     {"requests": [{"id": "3f2a", "kind": "request", "name": "Ada", "roles": ["submit"],
                    "peerId": "12D3KooWada"}]}, "3f2a"),
    (("approve", "lab", "3f2a", "--roles", "submit"), "POST",
     "/services/lab/requests/3f2a/approve",
     {"member": "Ada", "roles": ["submit"], "peerId": "12D3KooWada"},
     "'Ada' is on the list of 'lab': submit"),
    (("deny", "lab", "3f2a"), "POST", "/services/lab/requests/3f2a/deny",
     {"peerId": "12D3KooWada"}, "Refused 12D3KooWada"[:8]),
    (("leave", "lab"), "POST", "/services/lab/leave",
     {"serviceId": "b", "serviceName": "lab", "offTheList": False}, "as soon as one is connected"),
    (("decline", "lab"), "POST", "/services/lab/decline", {"serviceId": "b", "serviceName": "lab"},
     "not offered again"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "method", "path", "answer", "said"), COMMANDS)
def test_every_other_command(
    node: FakeNode,
    run: Run,
    words: tuple[str, ...],
    method: str,
    path: str,
    answer: dict[str, Any],
    said: str,
) -> None:
    node.on(method, path, answer)
    ran = run("service", *words)
    assert ran.code == 0
    assert said in ran.out + ran.err
    shown = json.loads(run("service", *words, "--json").out)
    assert shown in (answer, next(iter(answer.values())), {**answer, "qr": None}) or "link" in shown
