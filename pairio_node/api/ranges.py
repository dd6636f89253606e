"""The `Range` header (RFC 9110, 14): which bytes are asked for. Pure.

A header that is no valid `bytes` range is as none: the whole is the answer. So is one that asks
for too many parts, or for parts that overlap.
"""

import re
from itertools import pairwise
from typing import Final

__all__ = ["RANGES_MAX", "Unsatisfiable", "parse_ranges"]

#: More parts than this in one answer are not made.
RANGES_MAX: Final = 16
_ONE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_HEADER_LENGTH_MAX = 1000


class Unsatisfiable(ValueError):
    """No part that was asked for lies within the content (416)."""


def parse_ranges(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """Return [(start, stop), ...] within `size`, in the order asked for; None for the whole.

    Raises:
        Unsatisfiable: the header is valid, and nothing of it lies within the content.
    """
    unit, equals, wanted = (header or "").strip().partition("=")
    if unit.lower() != "bytes" or not equals or len(wanted) > _HEADER_LENGTH_MAX:
        return None
    texts = [text.strip(" \t") for text in wanted.split(",")]
    texts = [text for text in texts if text]  # a list may have empty elements
    if not texts or len(texts) > RANGES_MAX:
        return None
    found = []
    for text in texts:
        match = _ONE.fullmatch(text)
        if match is None or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        if first == "":
            start, stop = max(0, size - int(last)), size
        elif last and int(last) < int(first):
            return None
        else:
            start, stop = int(first), min(size, int(last) + 1 if last else size)
        if start < stop:
            found.append((start, stop))
    if not found:
        raise Unsatisfiable(f"bytes */{size}")
    in_order = sorted(found)
    if any(one[1] > other[0] for one, other in pairwise(in_order)):
        return None
    return found
