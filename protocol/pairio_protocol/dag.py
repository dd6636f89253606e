"""What a block links to, whatever kind of content it is part of."""

from typing import Any

from pairio_protocol.cid import DAG_CBOR, DAG_PB, parse_cid
from pairio_protocol.documents import Link, decode
from pairio_protocol.errors import DecodeError
from pairio_protocol.unixfs import dag_pb_links

__all__ = ["links_of"]


def links_of(cid: str, block: bytes) -> list[str]:
    """Return the CIDs that a block (already checked against its CID) links to, in order.

    A dag-cbor block that is no document of pairio's is taken to link to nothing.

    Raises:
        UnixfsError: a malformed dag-pb block, or a link to what pairio does not read.
    """
    codec = parse_cid(cid).codec
    if codec == DAG_PB:
        return dag_pb_links(block)
    if codec == DAG_CBOR:
        try:
            return _links(decode(block, len(block)))
        except DecodeError:
            return []
    return []


def _links(value: Any) -> list[str]:
    match value:
        case Link():
            return [value.cid]
        case list():
            return [cid for item in value for cid in _links(item)]
        case dict():
            return [cid for item in value.values() for cid in _links(item)]
    return []
