"""Messages that begin with their length as a varint, as other libp2p protocols have them."""

from collections.abc import Awaitable, Callable

from pairio_protocol.errors import DecodeError

__all__ = ["receive_prefixed"]

_LENGTH_BITS_MAX = 35


async def receive_prefixed(
    receive_exactly: Callable[[int], Awaitable[bytes]], size_max: Callable[[], int]
) -> bytes:
    """Receive the next message; its length is held against `size_max()`, asked when the length has
    come, before anything of it is kept.

    Raises:
        DecodeError: larger than that, or a length without end. What `receive_exactly` raises.
    """
    size = shift = 0
    while True:
        byte = (await receive_exactly(1))[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
        if shift >= _LENGTH_BITS_MAX:
            raise DecodeError("a message whose length does not end")
    most = size_max()
    if size > most:
        raise DecodeError(f"a message of {size} bytes; at most {most}")
    return await receive_exactly(size)
