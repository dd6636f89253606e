"""Downloads: files and folders by CID from the node, continued after a cut, checked by hash.

A file is written beside its place, under a hidden name with the end of its CID, and moved there
when every block of it was hashed and is the one that the CID names.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pairio_cli.output import fail, short
from pairio_cli.shared import part
from pairio_protocol.figures import size_text

__all__ = ["Bar", "content_of", "fetch_content", "plain_name"]

_DEPTH_MAX = 64


class Bar:
    """How far something is, on a terminal only."""

    def __init__(self, name: str) -> None:
        self._name = "".join(c if c.isprintable() else "?" for c in name)
        self._is_shown = sys.stderr.isatty()
        self._percent = -1

    def show(self, done: int, size: int) -> None:
        """Show that `done` of `size` bytes are there."""
        percent = 100 * done // size if size else 100
        if self._is_shown and percent != self._percent:
            self._percent = percent
            full = "#" * (percent // 4)
            line = f"\r{self._name[:40]}  [{full:<25}] {percent:3}%  {size_text(done)}"
            print(line, end="", file=sys.stderr, flush=True)

    def say(self, words: str) -> None:
        """Show words in place of a bar."""
        if self._is_shown:
            print(f"\r{words[:78]:<78}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._is_shown and self._percent >= 0:
            print(file=sys.stderr)

    def clear(self) -> None:
        """Empty the line."""
        if self._is_shown:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)


def plain_name(name: str) -> str:
    """Return a name that somebody else chose, if it is one for a file; leave if it is not."""
    if name in ("", ".", "..") or any(c in "/\0\n\r" for c in name) or len(name.encode()) > 255:
        fail(f"{name!r} is no name for a file", "name a file of your own: -o PATH", 1)
    return name


def content_of(node: Any, cid: str) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    yield from node.stream(f"/api/v1/content/{part(cid)}")


def fetch_content(node: Any, cid: str, target: Path, *, force: bool) -> int:
    """Write a file or folder to `target`; return its bytes. What is there with the same content
    already stays; other content is only replaced with `force`, files one by one."""
    try:
        return _Fetch(node, force).any(cid, target, 0)
    except OSError as error:
        fail(f"cannot write {target}: {error.strerror}", "name a file that you may write", 1)


class _Fetch:
    def __init__(self, node: Any, force: bool) -> None:
        self._node = node
        self._force = force
        self._count = 0

    def _block(self, cid: str) -> bytes:
        from pairio_protocol.cid import matches

        data = b"".join(self._node.stream(f"/api/v1/blocks/{part(cid)}"))
        if not matches(cid, data):
            fail(f"the node sends other bytes than block {cid}", "pairio verify says more", 1)
        return data

    def _parsed(self, cid: str) -> Any:
        from pairio_protocol.cid import RAW, parse_cid
        from pairio_protocol.unixfs import UnixfsError, parse_node

        if parse_cid(cid).codec == RAW:
            return None
        try:
            return parse_node(cid, self._block(cid))
        except UnixfsError as error:
            fail(f"{cid} cannot be written to a file: {error}", "it is no file or folder", 1)

    def any(self, cid: str, target: Path, depth: int) -> int:
        """Write a file or folder. A few blocks can name folders without end."""
        from pairio_protocol.limits import CONTENT_BLOCKS_MAX

        self._count += 1
        if self._count > CONTENT_BLOCKS_MAX:
            fail(f"{cid} is one of more than {CONTENT_BLOCKS_MAX} files", "name one of them", 1)
        node = self._parsed(cid)
        if node is None or not node.is_directory:
            return self._file(cid, target, node)
        if depth > _DEPTH_MAX:
            fail(f"{cid} is deeper than {_DEPTH_MAX} folders", "it cannot be written", 1)
        if not target.is_dir():
            if target.exists() and not self._force:
                _in_the_way(target)
            target.unlink(missing_ok=True)
            target.mkdir()
        entries = self._entries(cid, node)
        names = [plain_name(entry.name) for entry in entries]
        if len(set(names)) < len(names):
            fail(f"folder {cid} has a name twice", "it cannot be written", 1)
        return sum(self.any(entry.cid, target / entry.name, depth + 1) for entry in entries)

    def _entries(self, cid: str, node: Any) -> Any:
        """Return what lies in a folder, shard by shard if it is a large one."""
        from pairio_protocol.shards import Listing
        from pairio_protocol.unixfs import UnixfsError

        try:
            listing = Listing(node)
            while (shard := listing.next) is not None:
                listing.take(self._parsed(shard))
        except UnixfsError as error:
            fail(f"folder {cid} cannot be written: {error}", "it is no well made folder", 1)
        return listing.entries

    def _file(self, cid: str, target: Path, node: Any) -> int:
        if target.is_dir() or (target.exists() and not self._force):
            if target.is_dir() or not self._holds(target, cid):
                _in_the_way(target)
            return target.stat().st_size
        partial = target.with_name(f".{target.name[:200]}.{short(cid)}.part")
        size = node.size_bytes if node is not None else None
        self._download(cid, partial, size, Bar(target.name))
        if not self._holds(partial, cid):
            partial.unlink()
            fail(
                f"what was written of {cid} is damaged, and was removed",
                "run it again; if it happens again look at the disk",
                1,
            )
        os.replace(partial, target)
        return target.stat().st_size

    def _download(self, cid: str, partial: Path, size: int | None, bar: Bar) -> None:
        done = partial.stat().st_size if partial.exists() else 0
        if size is None or done > size:
            done = 0
        with partial.open("r+b" if done else "wb") as file:
            file.seek(done)
            if done != size:
                for chunk in self._node.stream(f"/api/v1/content/{part(cid)}", None, done):
                    done += file.write(chunk)
                    bar.show(done, size or done)
            file.truncate()
        bar.end()

    def _holds(self, path: Path, cid: str) -> bool:
        """Say whether a file is, block by block, the one that a CID names."""
        with path.open("rb") as file:
            return self._is_next(file.read, cid, 0) and not file.read(1)

    def _is_next(self, read: Callable[[int], bytes], cid: str, depth: int) -> bool:
        from pairio_protocol.cid import RAW, matches, parse_cid
        from pairio_protocol.limits import CONTENT_BLOCK_SIZE_BYTES_MAX

        if parse_cid(cid).codec == RAW:  # a file of one block
            return matches(cid, read(CONTENT_BLOCK_SIZE_BYTES_MAX))
        node = self._parsed(cid)
        if node.is_directory or depth > _DEPTH_MAX or read(len(node.data)) != node.data:
            return False
        for entry in node.entries:
            if parse_cid(entry.cid).codec == RAW:
                if not matches(
                    entry.cid, read(min(entry.size_bytes, CONTENT_BLOCK_SIZE_BYTES_MAX))
                ):
                    return False
            elif not self._is_next(read, entry.cid, depth + 1):
                return False
        return True


def _in_the_way(target: Path) -> None:
    fail(f"{target} exists and holds something else", "choose another -o, or add --force", 1)
