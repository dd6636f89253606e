"""A job goes to the node that has its input: whoever was asked, and who was not asked at all."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.blocks.holders import find_holders
from pairio_node.transport import MemoryNetwork
from pairio_protocol.cid import RAW, cid_of
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, until

MIB = 2**20


@asynccontextmanager
async def _four(path: Path) -> AsyncIterator[tuple[LabNode, list[LabNode]]]:
    """A node that only submits, and three that compute an app with one input."""
    network = MemoryNetwork()
    async with (
        running(network, path / "first", compute=False) as first,
        running(network, path / "b", first) as b,
        running(network, path / "c", first) as c,
        running(network, path / "d", first) as d,
    ):
        await first.services.create(SERVICE)
        for number, node in enumerate((b, c, d)):
            await first.admins.grant(SERVICE, node.peer_id, ["compute", "submit"], f"n{number}")
        app = app_directory(path / "app")
        spec = json.loads((app / "spec.json").read_text())
        spec["processors"][0]["inputs"] = [{"name": "data"}]
        (app / "spec.json").write_text(json.dumps(spec))
        await first.services.install_app(SERVICE, str(app), None)
        service = first.services.id_of(SERVICE)
        await until(lambda: len(_free(first, service)) == 3, "all are known to be free")
        yield first, [b, c, d]


def _free(node: LabNode, service: str) -> list[str]:
    return [e.peer for e in node.core.presence(service) if e.compute]


async def _run(node: LabNode, name: str, url: str) -> dict[str, Any]:
    definition = {
        "appName": "greeter",
        "processorName": "greet",
        "inputFiles": [{"name": "data", "url": url}],
        "outputFiles": [{"name": "output"}],
        "parameters": [{"name": "name", "value": name}],
    }
    with trio.fail_after(60):
        job = await node.jobs.submit({"jobDefinition": definition})
        done = await node.jobs.wait(job["requestId"], None, 50)
    assert done["status"] == "completed"
    return done


@pytest.mark.parametrize("holder", [0, 1, 2])
async def test_a_job_runs_on_the_one_node_that_holds_its_input(holder: int, tmp_path: Path) -> None:
    async with _four(tmp_path) as (first, nodes):
        file = tmp_path / "data.bin"
        file.write_bytes(bytes(3 * MIB))
        added = await nodes[holder].referenced.add(str(file), 30)
        await nodes[holder].referenced.share(SERVICE, added["cid"])
        for name in ("Ada", "Bob"):
            done = await _run(first, name, f"ipfs://{added['cid']}")
            assert done["computeNodeId"] == nodes[holder].peer_id
        others = [node for node in (first, *nodes) if node is not nodes[holder]]
        assert all(node.blocks.used_bytes < MIB for node in others), "nobody else has its bytes"


async def test_a_submitter_that_holds_the_input_runs_it_and_copies_nothing(tmp_path: Path) -> None:
    async with _four(tmp_path) as (_, nodes):
        file = tmp_path / "data.bin"
        file.write_bytes(bytes(3 * MIB))
        for node in nodes:
            added = await node.referenced.add(str(file), 30)
            done = await _run(node, node.peer_id, f"ipfs://{added['cid']}")
            assert done["computeNodeId"] == node.peer_id
        assert all(node.blocks.used_bytes < MIB for node in nodes)


async def test_an_input_by_reference_is_said_not_to_be_replicated(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a", compute=False) as node:
        await node.services.create(SERVICE)
        app = app_directory(tmp_path / "app")
        spec = json.loads((app / "spec.json").read_text())
        spec["processors"][0]["inputs"] = [{"name": "data"}]
        (app / "spec.json").write_text(json.dumps(spec))
        await node.services.install_app(SERVICE, str(app), None)
        file = tmp_path / "data.bin"
        file.write_bytes(bytes(3 * MIB))
        added = await node.referenced.add(str(file), 30)
        definition = {
            "appName": "greeter",
            "processorName": "greet",
            "inputFiles": [{"name": "data", "url": f"ipfs://{added['cid']}"}],
            "outputFiles": [{"name": "output"}],
            "parameters": [],
        }
        job = await node.jobs.submit({"jobDefinition": definition})
        assert not job["inputsReplicated"]


async def test_only_members_that_have_it_are_holders_and_no_answer_costs_a_second(
    tmp_path: Path,
) -> None:
    async with _four(tmp_path) as (first, nodes):
        service = first.services.id_of(SERVICE)
        (tmp_path / "data.bin").write_bytes(bytes(3 * MIB))
        added = await nodes[1].referenced.add(str(tmp_path / "data.bin"), 30)
        peers = [node.peer_id for node in nodes]
        assert await find_holders(first.exchange, service, added["cid"], peers) == {}
        await nodes[1].referenced.share(SERVICE, added["cid"])
        found = await find_holders(first.exchange, service, added["cid"], [*peers, "nobody"])
        assert set(found) == {nodes[1].peer_id}

        async def never(stream: Any) -> None:
            await trio.sleep_forever()

        nodes[1].transport.set_stream_handler("/pairio/blocks/1", never)
        with trio.fail_after(20):
            assert await find_holders(first.exchange, service, added["cid"], peers) == {}
        small = cid_of(RAW, b"small")
        looked = await first.inputs.look(
            service, {"inputFiles": [{"name": "data", "url": f"ipfs://{small}"}]}
        )
        assert (looked.local, looked.held) == ([], []), "nobody is asked for one block"
