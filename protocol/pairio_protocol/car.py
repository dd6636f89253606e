"""CARv1: blocks in a file, each behind its CID, as Kubo's `ipfs dag import` and `export` have them.

    length | header {roots: [link, ...], version: 1}        lengths are varints
    length | CID | block                                     again and again

Source: https://ipld.io/specs/transport/car/carv1/ . Bytes in, blocks out: nothing is read as a
whole, and no length is believed before it was compared with its bound.
"""

from collections.abc import Iterator

from pairio_protocol import protobuf
from pairio_protocol.cid import CidError, cid_bytes, cid_text_of_any, matches
from pairio_protocol.documents import Link, decode, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import CAR_HEADER_SIZE_BYTES_MAX, CONTENT_BLOCK_SIZE_BYTES_MAX

__all__ = ["CarReader", "car_header", "car_section"]

_CID_SIZE_BYTES = 36
_CID_V0_SIZE_BYTES = 34
_VARINT_BYTES_MAX = 9


def car_header(root: str) -> bytes:
    """Return the beginning of a CAR with one root."""
    header = encode({"roots": [Link(root)], "version": 1})
    return protobuf.varint(len(header)) + header


def car_section(cid: str, block: bytes) -> bytes:
    """Return a block as it stands in a CAR."""
    return protobuf.varint(_CID_SIZE_BYTES + len(block)) + cid_bytes(cid) + block


class CarReader:
    """Reads a CAR as its bytes come; holds one section at most.

    `roots` are known once the header was read. Blocks are checked against their CIDs.
    """

    def __init__(self) -> None:
        self.roots: tuple[str, ...] | None = None
        self._buffer = bytearray()
        self._at = 0  # how far the file was read before what is in the buffer

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes, int]]:
        """Yield (CID, block, where the block begins in the file) of what is whole now.

        Raises:
            DecodeError: no CAR, a section beyond the bound, a CID of a kind that pairio does not
                use, or bytes that are not the block that the CID names.
        """
        self._buffer += data
        while (found := self._section()) is not None:
            section, begin = found
            if self.roots is None:
                self.roots = _roots(section)
                continue
            cid, length = _cid(section)
            block = section[length:]
            if not matches(cid, block):
                raise DecodeError(f"the CAR holds other bytes than block {cid}")
            yield cid, block, begin + length

    def finish(self) -> tuple[str, ...]:
        """Return the roots when the file has ended; DecodeError when it ends too early."""
        if self.roots is None or self._buffer:
            raise DecodeError("the CAR ends in the middle")
        return self.roots

    def _section(self) -> tuple[bytes, int] | None:
        """Take the next whole section from the buffer; with where it begins behind its length."""
        bound = CAR_HEADER_SIZE_BYTES_MAX
        if self.roots is not None:
            bound = CONTENT_BLOCK_SIZE_BYTES_MAX + _CID_SIZE_BYTES
        read = _read_varint(self._buffer)
        if read is None:
            return None
        size, begin = read
        if not 0 < size <= bound:
            raise DecodeError(f"a section of {size} bytes in a CAR; at most {bound} are read")
        if len(self._buffer) < begin + size:
            return None
        section = bytes(self._buffer[begin : begin + size])
        del self._buffer[: begin + size]
        self._at += begin + size
        return section, self._at - size


def _read_varint(data: bytearray) -> tuple[int, int] | None:
    """Return (number, its length) at the beginning of `data`; None when it is not whole yet."""
    number = 0
    for index, byte in enumerate(data[:_VARINT_BYTES_MAX]):
        number |= (byte & 127) << 7 * index
        if byte < 128:
            if index and not byte:
                raise DecodeError("a length in a CAR is written longer than it has to be")
            return number, index + 1
    if len(data) >= _VARINT_BYTES_MAX:
        raise DecodeError("a length in a CAR does not end")
    return None


def _roots(header: bytes) -> tuple[str, ...]:
    plain = decode(header, CAR_HEADER_SIZE_BYTES_MAX)
    version, roots = plain.get("version"), plain.get("roots")
    if version != 1 or version is True or not isinstance(roots, list) or len(plain) != 2:
        raise DecodeError("not a CAR of version 1")
    if not roots or not all(isinstance(root, Link) for root in roots):
        raise DecodeError("a CAR without a root")
    return tuple(root.cid for root in roots)


def _cid(section: bytes) -> tuple[str, int]:
    """Return the CID at the beginning of a section, as version 1, and how long it is there."""
    length = _CID_V0_SIZE_BYTES if section[:1] == b"\x12" else _CID_SIZE_BYTES
    try:
        return cid_text_of_any(section[:length]), length
    except CidError:
        raise DecodeError(
            "a block in a CAR whose CID is not one with sha2-256 of raw, dag-pb or dag-cbor"
        ) from None
