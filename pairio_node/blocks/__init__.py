"""Content by CID: store, import and export as UnixFS, fetch from members."""

from pairio_node.blocks.base import (
    Added,
    BlockCorrupt,
    BlockMissing,
    BlockStore,
    BlockUnreadable,
    LocalStore,
    StoredBlock,
    StoreUnavailable,
)
from pairio_node.blocks.content import Content
from pairio_node.blocks.disk import DiskBlockStore
from pairio_node.blocks.exchange import Exchange, FetchFailed
from pairio_node.blocks.in_use import InUse
from pairio_node.blocks.scoped import ScopedContent, ServiceBlocks

__all__ = [
    "Added",
    "BlockCorrupt",
    "BlockMissing",
    "BlockStore",
    "BlockUnreadable",
    "Content",
    "DiskBlockStore",
    "Exchange",
    "FetchFailed",
    "InUse",
    "LocalStore",
    "ScopedContent",
    "ServiceBlocks",
    "StoreUnavailable",
    "StoredBlock",
]
