"""What the async client does to the world."""

from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from pairio import _upload
from pairio._http_async import AsyncApi
from pairio.client import _reader

__all__ = [
    "AsyncApi",
    "add_bytes",
    "add_path",
    "add_reference",
    "in_thread",
    "open_content",
    "sleep",
]

sleep = anyio.sleep


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Do something that blocks."""
    return await anyio.to_thread.run_sync(partial(function, *arguments))


async def open_content(
    api: AsyncApi, path: str, query: dict[str, Any], reconnect_s: float
) -> BufferedReader:
    """Open content for reading; reads block, as those of any file."""
    return await anyio.to_thread.run_sync(
        _reader.open_content, api.blocking().alone(), path, query, reconnect_s
    )


async def add_path(api: AsyncApi, path: Path) -> dict[str, Any]:
    """Add a file or folder of this machine to the node."""
    return await _blocking(_upload.add_path, api, path)


async def add_reference(api: AsyncApi, path: Path) -> dict[str, Any]:
    """Let the node hash a file or folder of its machine where it lies."""
    return await _blocking(_upload.add_reference, api, path)


async def add_bytes(api: AsyncApi, data: bytes) -> dict[str, Any]:
    """Add bytes to the node."""
    return await _blocking(_upload.add_bytes, api, data)


async def _blocking(add: Any, api: AsyncApi, what: Any) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        own = api.blocking()
        try:
            added: dict[str, Any] = add(own, what)
            return added
        finally:
            own.close()

    return await anyio.to_thread.run_sync(run)
