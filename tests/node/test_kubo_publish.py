"""What is told a Kubo daemon, where the daemon refuses; the rest is tested with a real one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from pairio_node import kubo_publish
from pairio_node.blocks.kubo import KuboError
from pairio_node.kubo_publish import KuboPublisher
from pairio_protocol.cid import DAG_CBOR, cid_of
from tests.node.node_lab import until

JOB, RESULT = (cid_of(DAG_CBOR, data) for data in (b"job", b"result"))


class RefusingApi:
    """A daemon that is there, and lets nothing be done."""

    why_down = ""
    asked = 0

    def unlink(self, path: str) -> None:
        self.asked += 1
        raise KuboError(f"the Kubo daemon says: cannot remove {path}")


async def test_a_daemon_that_refuses_is_asked_again_and_ends_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubo_publish, "REVIEW_S", 0.0)
    monkeypatch.setattr(kubo_publish, "LOOK_S", 0.01)
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / JOB).write_text(RESULT)  # of a service that was left since
    api = RefusingApi()
    node = SimpleNamespace(
        config=SimpleNamespace(dht=False),
        core=SimpleNamespace(membership=SimpleNamespace(taken_up=set())),
    )
    blocks = SimpleNamespace(api=api, daemon="daemon", limiter=None)
    publisher = KuboPublisher(cast(Any, node), cast(Any, blocks), "public", tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.run)
            await until(lambda: api.asked >= 2, "asked again")
            nursery.cancel_scope.cancel()
    assert publisher.published == {JOB: RESULT}
    assert publisher.status()["publishFailures"] >= 1
