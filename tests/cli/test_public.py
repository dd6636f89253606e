"""`pairio service public`: the link on stdout, or what waits for further admins."""

from typing import Any

from tests.cli.conftest import Run
from tests.sdk.fake_node import FakeNode

LIMITS = {
    "requests_per_hour": 20,
    "open_max": 4,
    "all_per_hour": 200,
    "all_open_max": 16,
    "cpu_millicores": 1000,
    "memory_mib": 1024,
    "gpus": 0,
    "time_ms": 60_000,
}
WAITING: dict[str, Any] = {
    "id": "bafyproposal",
    "needed": 2,
    "have": 1,
    "neededAfter": None,
    "haveAfter": None,
    "missing": [{"peerId": "12D3KooWbob", "member": "Bob"}],
}


def _answer(link: str | None, proposal: dict[str, Any] | None) -> dict[str, Any]:
    public = LIMITS if link else None
    return {"serviceName": "lab", "serviceId": "s", "public": public, "link": link,
            "proposal": proposal}  # fmt: skip


def test_the_link_is_all_that_stdout_gets(node: FakeNode, run: Run) -> None:
    node.on("POST", "/services/lab/public", _answer("pairio-link", None))
    ran = run("service", "public", "lab")
    assert (ran.code, ran.out) == (0, "pairio-link\n")
    assert "is public" in ran.err


def test_with_several_admins_it_is_a_proposal_and_not_public_yet(node: FakeNode, run: Run) -> None:
    node.on("POST", "/services/lab/public", _answer(None, WAITING))
    node.on("DELETE", "/services/lab/public", _answer("pairio-link", WAITING))
    for off in ([], ["--off"]):
        ran = run("service", "public", "lab", *off)
        assert (ran.code, ran.out) == (0, "bafyproposal\n")
        assert "it waits for 1 more" in ran.err
        assert "public" not in ran.err


def test_it_is_said_that_it_is_public_no_more(node: FakeNode, run: Run) -> None:
    node.on("DELETE", "/services/lab/public", _answer(None, None))
    ran = run("service", "public", "lab", "--off")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("'lab' is not public any more (")
