"""What the blocking client does to the world."""

from io import BufferedReader
from time import sleep
from typing import Any

from pairio._http import Api
from pairio._upload import add_bytes, add_path, add_reference
from pairio.client import _reader

__all__ = ["Api", "add_bytes", "add_path", "add_reference", "in_thread", "open_content", "sleep"]


def open_content(api: Api, path: str, query: dict[str, Any], reconnect_s: float) -> BufferedReader:
    """Open content for reading."""
    return _reader.open_content(api.alone(), path, query, reconnect_s)


def in_thread(function: Any, *arguments: Any) -> Any:
    """Do something that blocks: here, as everything does."""
    return function(*arguments)
