"""A question and its answer over a socket to a helper process: a line of JSON each."""

import json
import socket
from typing import Any

import trio

__all__ = ["ask_in_lines"]


async def ask_in_lines(channel: socket.socket, message: dict[str, Any], within_s: float) -> Any:
    """Send a message and return its answer. One question at a time; a caller that is cancelled in
    the middle leaves half a message, so shield it.

    Raises:
        OSError: the helper has gone. trio.TooSlowError: no answer in time. After either the channel
            is of no more use.
    """
    line, answer = json.dumps(message).encode() + b"\n", b""
    with trio.fail_after(within_s):
        while line:
            await trio.lowlevel.wait_writable(channel.fileno())
            line = line[channel.send(line) :]
        while not answer.endswith(b"\n"):
            await trio.lowlevel.wait_readable(channel.fileno())
            answer += (data := channel.recv(4096))
            if not data:
                raise BrokenPipeError("it has ended")
    return json.loads(answer)
