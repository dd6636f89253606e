"""What a supervisor hears from the processes of a warm worker, in which an app's code has run."""

import socket

import pytest

from pairio_node.runner.zygote.warm_job import hear, last_words


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


END = b'{"status": 0, "cpu_ms": 7, "memory_peak_bytes": 9}'


def test_the_end_is_found_behind_what_nobody_listened_to() -> None:
    with _said(b'{"held": true}', END) as link:
        assert last_words(link) == {"status": 0, "cpu_ms": 7, "memory_peak_bytes": 9}


@pytest.mark.parametrize(
    "messages",
    [(), (b'{"held": true}',), (b"7",), (b"\xff",), (b"[" * 100_000,), (b'{"status": 0}',)],
)
def test_one_that_ends_otherwise_was_lost(messages: tuple[bytes, ...]) -> None:
    with _said(*messages) as link:
        assert last_words(link) == {}


def test_one_that_has_said_nothing_yet_goes_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert last_words(ours) is None
        theirs.send(b'{"held": true}')
        assert last_words(ours) is None
