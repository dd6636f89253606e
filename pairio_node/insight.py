"""What is told to clients about jobs beyond their state, in one place."""

from typing import TYPE_CHECKING

from pairio_node.batches import Batches
from pairio_node.explain import Explain
from pairio_node.graphs import Graphs
from pairio_node.nodes import Nodes
from pairio_node.plans import Plans

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Insight"]


class Insight:
    """Plans, explanations, graphs, batches, nodes."""

    def __init__(self, node: "Node") -> None:
        self.explain = Explain(node)
        self.plans = Plans(node, self.explain)
        self.graphs = Graphs(node)
        self.batches = Batches(node)
        self.nodes = Nodes(node)
