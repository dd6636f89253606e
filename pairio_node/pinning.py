"""What is behind a URL, made content of this node: from then on it is what it was."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.urls import UrlRules, fetch_url

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["UrlPins"]

#: URLs that are fetched at once for clients.
_FETCHES_MAX = 4


class UrlPins:
    """Fetches URLs for clients, under the rules of this node's owner for jobs."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._rules = UrlRules(node.config.allow_hosts, node.config.url_input_bytes_max)
        self._slots = trio.CapacityLimiter(_FETCHES_MAX)

    async def add(self, url: str) -> dict[str, Any]:
        """Add what a URL gives; returns `{cid, size, etag}`.

        Raises:
            UrlError: it cannot be had, or the owner's rules are against it.
            StorageFullError: there is no room for it.
        """
        jobs = self._node.home.path / "jobs"  # what a crash leaves there is removed at start
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="url-", dir=jobs) as folder:
                path = Path(folder) / "content"
                fetched = await fetch_url(url, path, self._rules)
                added = await self._node.files.add_file(path)
        return {"cid": added.cid, "size": added.size_bytes, "etag": fetched.etag or None}
