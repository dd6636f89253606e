"""What the blocking client does to the world."""

from time import sleep
from typing import Any

from pairio._http import Api
from pairio._upload import add_bytes, add_path, add_reference

__all__ = ["Api", "add_bytes", "add_path", "add_reference", "in_thread", "sleep"]


def in_thread(function: Any, *arguments: Any) -> Any:
    """Do something that blocks: here, as everything does."""
    return function(*arguments)
