"""Streamed inputs: a job reads parts of a file over HTTP from its node, and has no network."""

from pairio_node.streams.job import JobStreams

__all__ = ["JobStreams"]
