"""A member that asks for impossible things: the node answers, counts, and goes on."""

from pathlib import Path

import pytest

from pairio_node.transport import CHANNEL_CONTROL, MemoryNetwork
from pairio_protocol.cid import cid_of
from pairio_protocol.messages import MESSAGES, Hold
from tests.node.node_lab import three, until

DAG_PB = 0x70
GARBAGE = b"\x12\xff\xff\xff\xff\xff\x01garbage"


@pytest.mark.parametrize("cid", ["", "garbage", "../../node.key", cid_of(DAG_PB, GARBAGE)])
async def test_a_hold_of_what_cannot_be_ends_nobody(
    cid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(MemoryNetwork(), tmp_path) as (_, worker, guest):
        service = worker.core.membership.find("lab") or ""
        if cid.startswith("baf"):
            await guest.contents.of(service).store.put(cid, GARBAGE)
        hold = Hold(service, "ticket", (cid,), (guest.peer_id,), b"")
        answers: list[bool] = []
        monkeypatch.setattr(
            guest.core.replication, "on_held", lambda _, held: answers.append(held.ok)
        )
        await until(lambda: worker.peer_id in guest.transport.connected(), "they are connected")
        guest.transport.send(worker.peer_id, CHANNEL_CONTROL, MESSAGES.encode(hold))
        await until(lambda: answers, "it answers")
        assert answers == [False]
        monkeypatch.undo()
        job = await guest.done(await guest.greet("Ada"))
        assert job["status"] == "completed"
