"""Content-addressed documents in strict DAG-CBOR: the only place that asks libipld for it.

A document is a map with text keys over null, bool, 64-bit integers, finite floats, text, lists,
maps and `Link`s. Plain bytes are refused: libipld cannot tell them from a link, so ids and
signatures stand in documents as text. Refused too: NaN, infinity, -0.0, lone surrogates.

Source: https://ipld.io/specs/codecs/dag-cbor/spec/ ; vectors in `protocol/vectors/documents.json`.
"""

import math
from dataclasses import dataclass
from typing import Any

import libipld

from pairio_protocol.cid import CidError, cid_bytes, cid_of, cid_text, parse_cid
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.limits import DEPTH_MAX

__all__ = ["DAG_CBOR", "Link", "decode", "document_cid", "encode"]

DAG_CBOR = 0x71
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
#: Where a value stands: its container's place, and its key or number there; () at the top.
_Where = tuple[()] | tuple["_Where", str | int]


@dataclass(frozen=True, slots=True)
class Link:
    """A CID that whoever pins the document must hold too."""

    cid: str


def encode(document: dict[str, Any]) -> bytes:
    """Return the one DAG-CBOR encoding of `document`.

    Raises:
        DefinitionError: a value that has no place in a document; the message names where.
    """
    return libipld.encode_dag_cbor(_lower(document, (), 0))


def decode(data: bytes, size_bytes_max: int) -> dict[str, Any]:
    """Return the document in `data`, its links as `Link`.

    Raises:
        DecodeError: too large, not DAG-CBOR, not canonical, or not a map.
    """
    if len(data) > size_bytes_max:
        raise DecodeError(f"document of {len(data)} bytes; at most {size_bytes_max} are read")
    try:
        plain = libipld.decode_dag_cbor(data)
        document = _raise(plain, 0)
        if not isinstance(document, dict) or libipld.encode_dag_cbor(plain) != data:
            raise DecodeError("document is not canonical DAG-CBOR")
    except DecodeError:
        raise
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise DecodeError(f"not a document: {error}") from None
    return document


def document_cid(data: bytes) -> str:
    """Return the CIDv1 (dag-cbor, sha2-256, base32) of encoded document bytes."""
    return cid_of(DAG_CBOR, data)


def _lower(value: Any, where: _Where, depth: int) -> Any:
    """Check `value` and turn links into what libipld writes as tag 42."""
    if depth > DEPTH_MAX:
        raise DefinitionError(f"{_path(where)} is nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, str):
        if not (value.isascii() or value.isprintable()) and _has_lone_surrogate(value):
            raise DefinitionError(f"{_path(where)} holds a lone surrogate; use valid Unicode text")
        return value
    if isinstance(value, dict):
        return _lower_map(value, where, depth)
    if isinstance(value, list):
        return [_lower(item, (where, i), depth + 1) for i, item in enumerate(value)]
    match value:
        case None | bool():
            return value
        case int():
            if not _INT_MIN <= value <= _INT_MAX:
                words = "use an integer of at most 64 bits"
                raise DefinitionError(f"{_path(where)} is {value}; {words}")
            return value
        case float():
            if not _is_plain_float(value):
                words = "use a finite number, and 0.0 for -0.0"
                raise DefinitionError(f"{_path(where)} is {value}; {words}")
            return value
        case Link():
            try:
                return cid_bytes(value.cid)
            except CidError as error:
                raise DefinitionError(f"{_path(where)}: {error}") from None
    kind = type(value).__name__
    raise DefinitionError(f"{_path(where)} is a {kind}; a document cannot hold that")


def _lower_map(value: dict[Any, Any], where: _Where, depth: int) -> dict[str, Any]:
    lowered = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise DefinitionError(f"{_path(where)} has a key that is not text")
        lowered[key] = _lower(item, (where, key), depth + 1)
    return lowered


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _path(where: _Where) -> str:
    """Return where a value stands, for people."""
    steps = []
    while where:
        where, step = where
        steps.append(f".{step}" if isinstance(step, str) else f"[{step}]")
    return "$" + "".join(reversed(steps))


def _raise(value: Any, depth: int) -> Any:
    """Turn what libipld read into document values."""
    if depth > DEPTH_MAX:
        raise DecodeError(f"nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {key: _raise(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_raise(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        try:
            text = cid_text(value)
            parse_cid(text)
        except CidError:
            raise DecodeError("document holds plain bytes") from None
        return Link(text)
    if isinstance(value, float) and not _is_plain_float(value):
        raise DecodeError(f"document holds {value}")
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        raise DecodeError("document holds an integer of more than 64 bits")
    return value


def _is_plain_float(value: float) -> bool:
    return math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)
