"""What a supervisor hears from the processes of a warm worker, in which an app's code has run."""

import socket

import pytest

from pairio_node.runner.zygote.warm_job import hear


def _said(*messages: bytes) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        for message in messages:
            theirs.send(message)
    return ours


def test_a_word_is_waited_for() -> None:
    with _said(b'{"held": true}', b'{"prepared": true}') as link:
        hear(link, "prepared")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b'{"error": "no memory"}', "no memory"),
        (b"[1]", "no message"),
        (b"7", "no message"),
        (b"prepared", "no message"),
        (b"\xff", "no message"),
        (b"[" * 100_000, "no message"),
    ],
)
def test_what_is_no_message_is_a_worker_that_takes_no_job(message: bytes, why: str) -> None:
    with _said(message) as link, pytest.raises(OSError, match=why):
        hear(link, "prepared")


def test_one_that_has_ended_takes_no_job() -> None:
    with _said() as link, pytest.raises(OSError, match="has ended"):
        hear(link, "prepared")
