"""Folders put together from files that are here: how a client that is not on this machine's disk,
or another user on it, adds one. Names are checked as those of a folder on disk are.
"""

from collections.abc import Sequence
from typing import Final

import trio

from pairio_node.blocks import BlockMissing, Content
from pairio_node.blocks.base import Added
from pairio_node.blocks.content import DEPTH_MAX, FILES_MAX
from pairio_node.blocks.unixfs import Entry, UnixfsError, folder_of, parse_node
from pairio_node.errors import NotFoundError, UserError
from pairio_protocol.cid import CidError

__all__ = ["build_folder"]

_NAME_BYTES_MAX: Final = 255
#: A folder being built: a name leads to a CID or to a folder.
_Tree = dict[str, "str | _Tree"]


async def build_folder(content: Content, entries: Sequence[tuple[str, str | None]]) -> Added:
    """Add a folder of `(path in it, CID of a file here)`; without a CID it is an empty folder.

    Raises:
        UserError: a path that cannot be, or stands there twice. NotFoundError: a file is not here.
    """
    if len(entries) > FILES_MAX:
        raise UserError(f"a folder of {len(entries)} entries; at most {FILES_MAX}")
    tree: _Tree = {}
    for path, cid in entries:
        _put(tree, path, cid)
    entry = await _build(content, tree)
    await trio.to_thread.run_sync(content.store.settle_sync, limiter=content.store.limiter)
    return Added(entry.cid, entry.size_bytes)


def _put(tree: _Tree, path: str, cid: str | None) -> None:
    *folders, name = path.split("/")
    if len(folders) >= DEPTH_MAX:
        raise UserError(f"{path[:200]!r} lies deeper than {DEPTH_MAX} folders")
    for part in (*folders, name):
        size = len(part.encode(errors="surrogatepass"))
        if part in ("", ".", "..") or "\0" in part or size > _NAME_BYTES_MAX:
            raise UserError(
                f"{path[:200]!r} is no path in a folder",
                hint=f"use names of 1 to {_NAME_BYTES_MAX} bytes with / between them",
            )
    for part in folders:
        inner = tree.setdefault(part, {})
        if isinstance(inner, str):
            raise UserError(f"{path[:200]!r} lies in {part[:200]!r}, which is a file")
        tree = inner
    if name in tree and (cid is not None or isinstance(tree[name], str)):
        raise UserError(f"{path[:200]!r} stands there twice")
    tree.setdefault(name, {} if cid is None else cid)


async def _build(content: Content, tree: _Tree) -> Entry:
    made = []
    for name, inner in sorted(tree.items()):
        if isinstance(inner, str):
            entry = await _file(content, inner)
        else:
            entry = await _build(content, inner)
        made.append(Entry(entry.cid, entry.size_bytes, entry.total_bytes, name))
    store = content.store
    try:
        return await trio.to_thread.run_sync(folder_of, made, store.put_sync, limiter=store.limiter)
    except (UnixfsError, UnicodeEncodeError) as error:
        raise UserError(f"the folder cannot be stored: {error}") from None


async def _file(content: Content, cid: str) -> Entry:
    try:
        block = await content.store.get(cid)
        node = parse_node(cid, block)
    except BlockMissing:
        raise NotFoundError(f"{cid} is not here", hint="add the file first") from None
    except (CidError, UnixfsError) as error:
        raise UserError(f"{cid[:100]!r} is no file: {error}") from None
    if node.is_directory:
        raise UserError(f"{cid} is a folder", hint="name the files in it")
    return Entry(cid, node.size_bytes, len(block) + sum(e.total_bytes for e in node.entries))
