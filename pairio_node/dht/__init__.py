"""The DHT of job ids, and look-ups further than connected members (docs/dht.md)."""

from pairio_node.dht.finder import Finder
from pairio_node.dht.node import Dht

__all__ = ["Dht", "Finder"]
