"""Waiting for another process, which sets no event here: it is looked at again and again."""

import time
from collections.abc import Callable
from typing import TypeVar

import trio

__all__ = ["until", "until_so"]

T = TypeVar("T")
#: Less than what a test may take, so that it is said what was waited for.
_TIMEOUT_S = 100.0
_LOOK_S = 0.05


def until(what: str, look: Callable[[], T], timeout_s: float = _TIMEOUT_S) -> T:
    """Return what `look` gives once it is true; TimeoutError says what never came to be."""
    ends = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_LOOK_S)  # house: waiting for another process


async def until_so(look: Callable[[], object]) -> None:
    """Return once `look` gives what is true, as `until` does; TooSlowError when it never does."""
    with trio.fail_after(_TIMEOUT_S):
        while not look():  # noqa: ASYNC110
            await trio.sleep(_LOOK_S)  # house: waiting for another process
