"""What waits to be written to a peer who reads slowly, or never."""

from pairio_node.transport.outbox import FRAMES_MAX, SIZE_BYTES_MAX, Outbox


def _filled(frame: bytes) -> tuple[Outbox, int]:
    outbox, count = Outbox(), 0
    while outbox.has_room(frame):
        outbox.put(frame)
        count += 1
    return outbox, count


def test_frames_come_out_as_they_went_in() -> None:
    outbox = Outbox()
    assert not outbox
    for frame in (b"a", b"b", b"c"):
        outbox.put(frame)
    assert [outbox.take() for _ in range(3)] == [b"a", b"b", b"c"]
    assert not outbox


def test_small_frames_are_bounded_in_number_and_large_ones_in_bytes() -> None:
    assert _filled(b"x")[1] == FRAMES_MAX
    assert _filled(bytes(60_000))[1] == SIZE_BYTES_MAX // 60_000


def test_what_is_taken_makes_room() -> None:
    large = bytes(60_000)
    outbox, count = _filled(large)
    outbox.take()
    assert outbox.has_room(large)
    outbox.put(large)
    assert not outbox.has_room(large)
    for _ in range(count):
        outbox.take()
    assert not outbox
    assert outbox.has_room(large)
