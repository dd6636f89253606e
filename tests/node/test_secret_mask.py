"""The console of a job shows none of its secrets, however their bytes come."""

import random

import pytest

from pairio_node.runner.supervisor.secret import Mask

VALUE = "correct horse battery"


def masked(mask: Mask, *pieces: bytes) -> bytes:
    return b"".join([*(mask.add(piece) for piece in pieces), mask.end()])


def test_a_secret_is_replaced_by_its_name() -> None:
    said = masked(Mask({"TOKEN": VALUE}), f"a {VALUE} b {VALUE}".encode())
    assert said == b"a [secret TOKEN] b [secret TOKEN]"


def test_without_secrets_nothing_changes_or_waits() -> None:
    mask = Mask({})
    assert mask.add(b"anything") == b"anything"
    assert mask.end() == b""


@pytest.mark.parametrize("seed", range(20))
def test_a_secret_in_pieces_of_any_size_is_replaced(seed: int) -> None:
    rng = random.Random(seed)
    values = {
        "A": "aaaaaaab",
        "B": "abababab",
        "C": "aaaaaaaab-and-more",
        "D": "l1-long-x\nl2-long-y",
    }
    words = [*values.values(), "aaaaaaa", "abab", "a", "\n", "text ", "l1-long-"]
    text = "".join(rng.choice(words) for _ in range(200)).encode()
    whole = masked(Mask(values), text)
    mask = Mask(values)
    pieces: list[bytes] = []
    while text:
        size = rng.choice((1, 2, 3, 7, 50))
        pieces, text = [*pieces, text[:size]], text[size:]
    said = masked(mask, *pieces)
    for value in values.values():
        for line in value.splitlines():
            assert line.encode() not in said
            assert line.encode() not in whole


def test_what_cannot_be_a_secret_is_not_held_back() -> None:
    mask = Mask({"TOKEN": VALUE})
    assert mask.add(b"line of a job\n") == b"line of a job\n"
    assert mask.add(b"it was correct") == b"it was "
    assert mask.add(b" after all") == b"correct after all"


def test_each_long_line_of_a_secret_is_masked_alone() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nshort\n-----END KEY-----\n"
    said = masked(Mask({"KEY": key}), b"x MIIEvQIBADANBg y short\r\n-----BEGIN KEY-----\r\n")
    assert said == b"x [secret KEY] y short\r\n[secret KEY]\r\n"


def test_a_long_secret_of_one_letter_takes_no_long_time() -> None:
    mask = Mask({"A": "a" * 16_000 + "b", "B": "a" * 15_000 + "c"})
    assert len(masked(mask, *[b"a" * 65_536] * 4)) == 4 * 65_536
