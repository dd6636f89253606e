"""A real node that also does what it is told over `HOME/bench.sock`: add, fetch, export, echo.

`python -m tests.integration.content.node run ...` takes what `pairio-node run` takes. Each line on
the socket is one JSON request, each answer one JSON line with the seconds that it took.
"""

import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from pairio_node.node import Node
from pairio_node.transport.base import ByteStream, StreamEnded

__all__ = ["SOCKET"]

SOCKET = "bench.sock"
#: A stream beside the blocks, on the same connection: how long a small message takes.
_ECHO = "/pairio/bench-echo/1"
_ECHO_BYTES = 256


async def _echo(stream: ByteStream) -> None:
    try:
        while True:
            await stream.send(await stream.receive_exactly(_ECHO_BYTES))
    except StreamEnded:
        await stream.close()


async def _add(node: Node, service: str, path: str) -> dict[str, Any]:
    added = await node.contents.of(service).add_file(Path(path))
    return {"cid": added.cid}


async def _fetch(node: Node, service: str, cid: str, holders: list[str]) -> dict[str, Any]:
    return {"bytes": await node.exchange.fetch(service, cid, holders)}


async def _export(node: Node, service: str, cid: str, path: str) -> dict[str, Any]:
    return {"bytes": await node.contents.of(service).export(cid, Path(path))}


async def _echoes(node: Node, peer: str, seconds: float) -> dict[str, Any]:
    """Send small messages to a peer for a while; return how long each took there and back."""
    took_s: list[float] = []
    stream = await node.transport.open_stream(peer, _ECHO)
    with trio.move_on_after(seconds):
        while True:
            began = time.perf_counter()
            await stream.send(bytes(_ECHO_BYTES))
            await stream.receive_exactly(_ECHO_BYTES)
            took_s.append(time.perf_counter() - began)
            await trio.sleep(0.05)
    await stream.abort()
    return {"took_s": took_s}


_COMMANDS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "add": _add,
    "fetch": _fetch,
    "export": _export,
    "echoes": _echoes,
}


async def _serve(node: Node, stream: trio.SocketStream) -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some()
    command, *arguments = json.loads(line)
    began = time.perf_counter()
    try:
        answer = await _COMMANDS[command](node, *arguments)
    except Exception as error:  # told to the bench, which ends with it
        answer = {"error": repr(error)}
    answer["seconds"] = time.perf_counter() - began
    await stream.send_all(json.dumps(answer).encode() + b"\n")
    await stream.aclose()


async def _listen(node: Node) -> None:
    node.transport.set_stream_handler(_ECHO, _echo)
    path = os.path.join(node.home.path, SOCKET)
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(path)
    listening.listen(8)
    await trio.serve_listeners(
        lambda stream: _serve(node, stream), [trio.SocketListener(listening)]
    )


def main() -> None:
    """Run the node with its socket."""

    start = Node.start

    def start_and_listen(self: Node, nursery: trio.Nursery) -> None:
        start(self, nursery)
        nursery.start_soon(_listen, self)

    Node.start = start_and_listen  # type: ignore[method-assign]
    from pairio_cli.node_main import main as run

    run()


if __name__ == "__main__":
    main()
