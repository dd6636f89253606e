"""A program for `test_public.py`: strangers with keys of their own ask a public service for as much
as they can, until stdin ends. It reads {address, service, app, keys} and prints how many asks it
sent: jobs that would do, jobs that are too large, and what is no job."""

import json
import os
import sys
from functools import partial
from typing import Any

import trio

from pairio_node.config import peer_in
from pairio_node.transport import CHANNEL_CONTROL
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_protocol.documents import encode
from pairio_protocol.messages import MESSAGES, Ask
from pairio_protocol.normalise import normalise
from pairio_protocol.records import Resources

FRAMES = 300
PAUSE_S = 0.01


def frames(service: str, app: dict[str, Any], seed: int) -> list[bytes]:
    made = []
    for number in range(FRAMES):
        definition = {
            "appName": app["name"],
            "processorName": "hello_world_2",
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "name", "value": f"flood {seed} {number}"}],
        }
        document, cpu = encode(normalise(definition, app)), 1000
        if number % 3 == 1:
            cpu = 512_000
        if number % 3 == 2:
            document = bytes(16_000)
        resources = Resources(cpu, 1024, 0, 60_000)
        made.append(MESSAGES.encode(Ask(service, f"{number}", document, resources, ())))
    return made


async def stranger(task: dict[str, Any], seed: int, sent: list[int]) -> None:
    transport = Libp2pTransport(bytes([77, seed]) + bytes(30), ("/ip4/127.0.0.1/tcp/0",))
    asks, peer = frames(task["service"], task["app"], seed), peer_in(task["address"])

    async def sink(_: Any) -> None:
        return

    async with transport.running(sink):
        transport.keep_connected(peer, (task["address"],))
        number = 0
        while True:
            sent[0] += transport.send(peer, CHANNEL_CONTROL, asks[number % FRAMES])
            number += 1
            await trio.sleep(PAUSE_S)


async def main() -> None:
    os.nice(10)  # strangers have machines of their own
    task, sent = json.loads(sys.stdin.readline()), [0]
    async with trio.open_nursery() as nursery:
        for seed in range(task["keys"]):
            nursery.start_soon(partial(stranger, task, seed, sent))
        await trio.lowlevel.FdStream(os.dup(0)).receive_some(1)
        nursery.cancel_scope.cancel()
    print(sent[0], flush=True)


if __name__ == "__main__":
    trio.run(main)
