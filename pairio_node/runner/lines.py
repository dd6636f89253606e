"""A question and its answer over a socket to a helper process: a line of JSON each."""

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

import trio

__all__ = ["ask_in_lines"]

_FDS_MAX = 4


async def ask_in_lines(
    channel: socket.socket, message: dict[str, Any], within_s: float, given: Sequence[int] = ()
) -> Any:
    """Send a message, with the descriptors `given`, and return its answer; those that come with
    that are its `fds`, the caller's. One question at a time; a caller that is cancelled in the
    middle leaves half a message, so shield it.

    Raises:
        OSError: the helper has gone. trio.TooSlowError: no answer in time. After either the channel
            is of no more use.
    """
    line, answer = json.dumps(message).encode() + b"\n", b""
    fds: list[int] = []
    try:
        with trio.fail_after(within_s):
            while line:
                try:
                    line, given = line[socket.send_fds(channel, [line], given) :], ()
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(channel.fileno())
            while not answer.endswith(b"\n"):
                await trio.lowlevel.wait_readable(channel.fileno())
                data, came, _, _ = socket.recv_fds(channel, 4096, _FDS_MAX)
                answer += data
                fds += came
                if not data:
                    raise BrokenPipeError("it has ended")
        return {**json.loads(answer), "fds": fds} if fds else json.loads(answer)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
