"""Writing the little of protobuf that IPFS formats need; readers, which meet strangers' bytes, keep
the bounds of their own format. Source: https://protobuf.dev/programming-guides/encoding/
"""

__all__ = ["field", "number", "varint"]


def varint(n: int) -> bytes:
    """Return a number >= 0 in groups of 7 bits, the lowest first."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def number(tag: int, n: int) -> bytes:
    """Return a field that holds a number."""
    return varint(tag << 3) + varint(n)


def field(tag: int, data: bytes) -> bytes:
    """Return a field that holds bytes."""
    return varint(tag << 3 | 2) + varint(len(data)) + data
