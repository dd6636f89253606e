"""msgpack, bounded: the only importer of msgpack.

Sizes are checked before anything is allocated. Strings are text, keys are text, no extension
types, no timestamps. Used for everything on the wire; never for what is hashed by content.
"""

from typing import Any

import msgpack

from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX, LIST_LENGTH_MAX

__all__ = ["pack", "unpack"]


def pack(value: Any) -> bytes:
    """Return the msgpack bytes of plain values (None, bool, int, float, str, bytes, list, dict)."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes, size_bytes_max: int = FRAME_SIZE_BYTES_MAX) -> Any:
    """Return the value of one whole msgpack document.

    Raises:
        DecodeError: too large, not msgpack, trailing bytes, a list that is too long, or keys of a
            map that are not text or not different.
    """
    if len(data) > size_bytes_max:
        raise DecodeError(f"{len(data)} bytes; at most {size_bytes_max} are read")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_text_map,
            max_str_len=len(data),
            max_bin_len=len(data),
            # A list is allocated by the length that it claims, at each of up to 1024 levels.
            max_array_len=LIST_LENGTH_MAX,
            max_map_len=LIST_LENGTH_MAX,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError(f"not msgpack: {error}") from None


def _text_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or not all(isinstance(key, str) for key in found):
        raise ValueError("keys of a map that are not text or not different")
    return found
