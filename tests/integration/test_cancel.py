"""Cancel over several real nodes: a run that nobody else wants ends everywhere, and they say so."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from tests.integration.cancel_lab import CancelLab, until
from tests.integration.conftest import RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CancelLab]:
    with ExitStack() as stack:
        yield CancelLab(tmp_path_factory.mktemp("cancel"), stack)


def test_a_run_that_nobody_else_wants_ends_and_every_node_says_so(lab: CancelLab) -> None:
    ended_ms, said_ms = lab.canceled_ms()
    print(f"canceled: nothing runs after {ended_ms:.0f} ms, all say so after {said_ms:.0f} ms")
    assert lab.running == 0


def test_what_another_member_wants_goes_on_until_that_one_cancels_too(lab: CancelLab) -> None:
    first, second = lab.submitters
    requests = [lab.submit(node, 1000) for node in lab.submitters]
    for request in requests:
        lab.runs(request)
    first.call("POST", f"jobs/{requests[0]}/cancel")
    for node in lab.nodes:
        until("it is said", partial(_is_canceled, node, requests[0]))
        assert _job(node, requests[1])["status"] == "running"
    assert lab.running >= 1
    second.call("POST", f"jobs/{requests[1]}/cancel")
    until("nothing runs", lambda: lab.running == 0)
    for node in lab.nodes:
        until("it is said", partial(_is_canceled, node, requests[1]))
    until("how it ended is said", lambda: _ended(first, requests[1]) == {"canceled"})


def _job(node: RunningNode, request: str) -> dict[str, Any]:
    found: dict[str, Any] = node.get(f"jobs/{request}")
    return found


def _ended(node: RunningNode, request: str) -> set[str | None]:
    return {attempt["ended"] for attempt in _job(node, request)["attempts"]}


def _is_canceled(node: RunningNode, request: str) -> bool:
    return bool(_job(node, request)["status"] == "canceled")
