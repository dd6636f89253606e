"""msgpack, bounded: the only importer of msgpack.

Sizes are checked before anything is allocated. Strings are text, keys are text, no extension
types, no timestamps. Used for everything on the wire; never for what is hashed by content.
"""

from typing import Any

import msgpack

from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX

__all__ = ["pack", "unpack"]


def pack(value: Any) -> bytes:
    """Return the msgpack bytes of plain values (None, bool, int, float, str, bytes, list, dict)."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes, size_bytes_max: int = FRAME_SIZE_BYTES_MAX) -> Any:
    """Return the value of one whole msgpack document.

    Raises:
        DecodeError: too large, not msgpack, trailing bytes, or keys that are not text.
    """
    if len(data) > size_bytes_max:
        raise DecodeError(f"{len(data)} bytes; at most {size_bytes_max} are read")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=len(data),
            max_map_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError(f"not msgpack: {error}") from None
