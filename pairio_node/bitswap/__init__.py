"""Bitswap with any IPFS node: public blocks are served, content is fetched that no member has.

`libp2p.bitswap` is not used: its client stores blocks that nobody asked for and holds a file three
times in memory, its server gives whatever is in the store to anybody and answers where Kubo does
not read (docs/decisions, "Bitswap of our own").
"""

from pairio_node.bitswap.node import Bitswap
from pairio_node.bitswap.server import Library
from pairio_node.bitswap.wire import BITSWAP

__all__ = ["BITSWAP", "Bitswap", "Library"]
