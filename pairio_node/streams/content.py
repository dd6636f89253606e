"""A file by CID that a job reads by parts: its blocks come from their holders as they are read,
each checked by its hash. Nothing is copied, and what is not read is not fetched.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Final

from pairio_node.blocks import BlockMissing, FetchFailed
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import UserError
from pairio_node.streams.remote import About
from pairio_node.urls import UrlError

__all__ = ["ContentSource", "ReadContent", "StreamedContent"]

#: Who reads on and on has so much fetched at a time, from several holders at once.
_WINDOW_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class StreamedContent:
    """An input by CID that is streamed to a job, and who may have it."""

    name: str
    cid: str
    size_bytes: int
    holders: tuple[str, ...]

    def kept(self) -> dict[str, Any]:
        """Return what is needed to go on with it after a restart."""
        return asdict(self)

    @staticmethod
    def of(kept: dict[str, Any]) -> "StreamedContent":
        """Return what `kept` said."""
        holders = tuple(str(holder) for holder in kept["holders"])
        return StreamedContent(kept["name"], kept["cid"], int(kept["size_bytes"]), holders)


#: Yields the bytes of (cid, holders, start, stop), fetched if need be.
ReadContent = Callable[[str, Sequence[str], int, int], AsyncIterator[bytes]]


class ContentSource:
    """See the module. `trouble` says why the job was not given what it asked for last."""

    def __init__(self, content: StreamedContent, read: ReadContent) -> None:
        self.content = content
        self.trouble = ""
        self.about = About(content.size_bytes, "", "")
        self._read = read

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes [start, stop). UrlError: nobody gives them now."""
        cid, holders = self.content.cid, self.content.holders
        try:
            while start < stop:
                end = min(stop, start + _WINDOW_BYTES)
                async with aclosing(self._read(cid, holders, start, end)) as pieces:  # type: ignore[type-var]
                    async for data in pieces:
                        yield data
                start = end
        except (FetchFailed, BlockMissing, UnixfsError) as error:
            self.trouble = f"{cid}: {error}"
        except UserError as error:
            self.trouble = f"{cid}: {error.message}"
        else:
            self.trouble = ""
            return
        raise UrlError(self.trouble, hint="submit again when a node that has it is up")
