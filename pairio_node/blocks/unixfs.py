"""UnixFS lives in the protocol, where a verifier without a node reads it too."""

from pairio_protocol.shards import Listing, find, folder_of
from pairio_protocol.unixfs import (
    CHUNK_SIZE_BYTES,
    Entry,
    FileBuilder,
    Node,
    UnixfsError,
    directory_block,
    parse_node,
)

__all__ = [
    "CHUNK_SIZE_BYTES",
    "Entry",
    "FileBuilder",
    "Listing",
    "Node",
    "UnixfsError",
    "directory_block",
    "find",
    "folder_of",
    "parse_node",
]
