"""CIDv1, sha2-256, lower-case base32: the names of content.

Source: https://github.com/multiformats/cid ; only what pairio makes and accepts: version 1, the
codecs raw (0x55), dag-pb (0x70), dag-cbor (0x71), and sha2-256 with its whole 32 bytes.
"""

import hashlib
from functools import lru_cache
from typing import Final, NamedTuple

import base58
import libipld

__all__ = [
    "DAG_CBOR",
    "DAG_PB",
    "RAW",
    "Cid",
    "CidError",
    "as_v1",
    "cid_bytes",
    "cid_of",
    "cid_text",
    "cid_text_of_any",
    "matches",
    "parse_cid",
]

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71
_CODECS = (RAW, DAG_PB, DAG_CBOR)
_SHA2_256 = b"\x12\x20"


class CidError(ValueError):
    """Text or bytes that are no CID of the kind pairio uses. Nothing was taken."""


class Cid(NamedTuple):
    """The parts of a CID."""

    version: int
    codec: int
    digest: bytes


def cid_of(codec: int, data: bytes) -> str:
    """Return the CID of a block."""
    return cid_text(bytes([1, codec]) + _SHA2_256 + hashlib.sha256(data).digest())


@lru_cache(maxsize=8192)
def cid_text(raw: bytes) -> str:
    """Return the base32 text of a binary CID (its form is not checked)."""
    return libipld.encode_multibase("b", raw)


@lru_cache(maxsize=8192)
def cid_bytes(text: str) -> bytes:
    """Return the 36 bytes of a CID, or raise CidError."""
    if len(text) != 59 or not text.startswith("b") or text != text.lower():
        raise CidError(f"{text[:80]!r} is no CIDv1 in base32 (bafy..., bafk...)")
    try:
        _, raw = libipld.decode_multibase(text)
    except ValueError:
        raise CidError(f"{text!r} is not base32") from None
    if raw[:1] != b"\x01" or raw[1] not in _CODECS or raw[2:4] != _SHA2_256 or len(raw) != 36:
        raise CidError(f"{text!r} is not a CIDv1 of raw, dag-pb or dag-cbor with sha2-256")
    if cid_text(raw) != text:
        raise CidError(f"{text!r} is not written canonically")
    return raw


def cid_text_of_any(raw: bytes) -> str:
    """Return the CIDv1 text of a binary CID of version 0 or 1, or raise CidError. Version 0
    (`Qm...`) always names a dag-pb block by sha2-256."""
    if len(raw) == 34 and raw[:2] == _SHA2_256:
        raw = bytes([1, DAG_PB]) + raw
    text = cid_text(raw)
    cid_bytes(text)
    return text


def as_v1(text: str) -> str:
    """Return a CID as pairio writes it: version 0 (`Qm...`, what Kubo prints by default) as the
    version 1 that names the same block; CidError when it is neither."""
    if text.startswith("Qm") and len(text) == 46:
        try:
            return cid_text_of_any(base58.b58decode(text))
        except ValueError as error:
            raise CidError(f"{text!r} is no CID: {error}") from None
    cid_bytes(text)
    return text


def parse_cid(text: str) -> Cid:
    """Return the parts of a CID, or raise CidError."""
    raw = cid_bytes(text)
    return Cid(1, raw[1], raw[4:])


def matches(text: str, data: bytes) -> bool:
    """Say whether `data` is the block that the CID names."""
    return parse_cid(text).digest == hashlib.sha256(data).digest()
