"""Data by reference: the owner's calls. Hashing goes on in the background; a caller asks again."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from pairio_node.blocks.reference_db import GOOD, RootRow
from pairio_node.blocks.references import Referenced, References
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import NotFoundError, UnavailableError, UserError
from pairio_protocol.cid import CidError

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["ReferencedData"]

_HASHING_MAX: Final = 2
_WAITING_MAX: Final = 64
_JOBS_SHOWN_MAX: Final = 20


class _Adding:
    """A file or folder that is being hashed. `done` is set at the end, with one of the others."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.added: Referenced | None = None
        self.error: UserError | None = None
        self.done = trio.Event()

    def count(self, size: int) -> None:
        """Some more was read."""
        self.read_bytes += size


class ReferencedData:
    """What the API asks of a node about referenced files."""

    def __init__(self, node: "Node", references: References) -> None:
        self._node = node
        self._references = references
        self._adding: dict[Path, _Adding] = {}
        self._turns = trio.Semaphore(_HASHING_MAX)
        self._nursery: trio.Nursery | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """Start with the node."""
        self._nursery = nursery
        token = trio.lowlevel.current_trio_token()

        def from_thread(root: RootRow) -> None:
            token.run_sync_soon(self._warn, root)

        self._references.on_changed = from_thread

    async def add(self, path: str, wait_s: float) -> dict[str, Any]:
        """Add a file or folder, or see how far that is: `state` is `done` or `hashing`.

        Raises:
            UserError: it cannot be added; the next call tries again.
        """
        assert self._nursery is not None
        if not Path(path).is_absolute() or "\0" in path:
            raise UserError(f"{path!r} is no absolute path", hint="give it from the root on")
        key = await trio.to_thread.run_sync(lambda: Path(path).resolve())
        adding = self._adding.get(key)
        if adding is None:
            if len(self._adding) >= _WAITING_MAX:
                raise UnavailableError(f"{_WAITING_MAX} files and folders are being added already")
            adding = self._adding[key] = _Adding()
            self._nursery.start_soon(self._add, key, adding)
        with trio.move_on_after(wait_s):
            await adding.done.wait()
        if adding.error is not None:
            raise adding.error
        if adding.added is None:
            return {"state": "hashing", "path": str(key), "readBytes": adding.read_bytes}
        added = adding.added
        return {
            "state": "done",
            "path": str(key),
            "cid": added.cid,
            "size": added.size_bytes,
            "wasHashed": added.was_hashed,
            "before": added.before or None,
            "dependents": self._dependents([added.before])[added.before],
        }

    async def _add(self, path: Path, adding: _Adding) -> None:
        try:
            async with self._turns:
                adding.added = await self._references.add(path, adding.count)
        except UserError as error:
            adding.error = error
        finally:
            adding.done.set()
            del self._adding[path]

    async def share(self, service: str, cid: str) -> dict[str, Any]:
        """Let a service have content that is here, as a job with it as an input would.

        Raises:
            NotFoundError: it is not here whole. UserError: no CID, or neither file nor folder.
        """
        node = self._node
        name = node.services.id_of(service)
        try:
            if not await node.contents.share(name, cid):
                raise NotFoundError(f"content {cid} is not here", hint="add it first")
        except (CidError, UnixfsError) as error:
            raise UserError(f"{cid[:100]!r} is no content: {error}") from None
        return {"cid": cid, "serviceId": name}

    async def all(self) -> list[dict[str, Any]]:
        """Return what was added, looked at now."""
        rows = await trio.to_thread.run_sync(self._references.all)
        jobs = self._dependents(row.cid for row in rows)
        return [self._view(row, jobs[row.cid]) for row in rows]

    async def remove(self, path: str) -> list[str]:
        """Forget a file or folder; it stays as it is. Returns its CIDs."""
        key = await trio.to_thread.run_sync(lambda: str(Path(path).resolve()))
        cids = await trio.to_thread.run_sync(self._references.remove, key)
        if not cids:
            raise NotFoundError(f"{key} is not referenced", hint="pairio content refs")
        return cids

    def _view(self, row: RootRow, dependents: list[str]) -> dict[str, Any]:
        return {
            "path": row.path,
            "cid": row.cid,
            "type": "folder" if row.is_folder else "file",
            "size": row.size,
            "state": "good" if row.state == GOOD else "changed",
            "addedUnixMs": row.added_unix_ms,
            "dependents": dependents,
        }

    def _dependents(self, cids: Iterable[str]) -> dict[str, list[str]]:
        """Return jobs, not too many, that have each content as an input."""
        core = self._node.core
        found: dict[str, dict[str, None]] = {cid: {} for cid in cids}
        for service in sorted(core.membership.taken_up) if any(found) else ():
            for state in core.fold(service).requests.values():
                for entry in state.document["inputs"]:
                    jobs = found.get(entry["source"].get("cid", ""))
                    if jobs is not None and len(jobs) < _JOBS_SHOWN_MAX:
                        jobs[state.job] = None
        return {cid: list(jobs) for cid, jobs in found.items()}

    def _warn(self, root: RootRow) -> None:
        jobs = len(self._dependents([root.cid])[root.cid])
        needed = f"; {jobs} jobs known here have it as an input" if jobs else ""
        self._node.say(
            f"warning: {root.path} is not as it was when it was added: content {root.cid} is gone"
            f" from this node{needed}. Add it again (--nocopy) to go on with what it is now"
        )
