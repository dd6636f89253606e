"""Files and folders as clients read and add them, and whom what is not here may come from."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pairio_node.blocks import Added, FetchFailed
from pairio_node.errors import UnavailableError, UserError
from pairio_node.folders import build_folder
from pairio_node.serving import Found, Item, Serving
from pairio_protocol import events as ev
from pairio_protocol.fold import RequestState

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Files"]

#: Bytes that a client gave stay so long for the job that is to name them.
_NAMED_S = 60.0


class Files:
    """Content by CID for the API and other parts of the node; every method may raise
    `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._from_members = Serving(node.content, node.exchange, self._sources)
        self._from_anybody = Serving(
            node.content, node.exchange, self._sources, lambda cids: node.outside.fetch_blocks(cids)
        )

    def read(
        self, cid: str, start: int, stop: int, root: str | None = None
    ) -> AsyncIterator[bytes]:
        """Yield bytes of a file, fetched as they are read if need be: from members and, with the
        `root` that the reader named and it lies below, where that may be from Bitswap peers."""
        self._node.cache.used(cid)
        return self._serving_of(root).read(cid, start, stop)

    async def look(self, cid: str, path: Sequence[str], root: str | None = None) -> Found:
        """Return what lies at a path below `cid`, here or elsewhere."""
        return await self._serving_of(root).look(cid, path)

    async def is_somewhere(self, cid: str) -> bool:
        """Say whether content can be read here, with its root at least from somebody else."""
        try:
            await self.look(cid, (), cid)
        except UserError:
            return False  # `ensure` says why, and tells the core
        return True

    async def ensure(self, cid: str, service: str, state: RequestState) -> None:
        """Fetch what belongs to a job's result, if it is not here. Raises UnavailableError."""
        node = self._node
        node.cache.used(cid)
        answer = node.core.fold(service).results.get(state.answer or "")
        worker = [answer.document.worker] if answer else []
        holders = [*worker, *self.members_to_ask(service)]
        if service in node.core.guests.services:
            holders = [node.core.guests.given_by.get(state.id, "")]
        try:
            others = [h for h in dict.fromkeys(holders) if h != node.peer_id]
            is_public = node.core.membership.folded(service).has_public_results
            source = node.outside if is_public else node.exchange
            with node.blocks.in_use.working():
                await source.fetch(service, cid, others)
        except FetchFailed as error:
            if node.finder is not None:
                node.finder.on_not_given(service, cid)
            if answer is not None and state.author == node.peer_id:
                node.driver.post(ev.ContentUnavailable(service, answer.cid))
            raise UnavailableError(
                str(error),
                hint="try again when a member that has it is up; if nobody has it for a minute, "
                "the job is computed again (pairio job show)",
            ) from None

    def _serving_of(self, root: str | None) -> Serving:
        """Return what reads below a root. Who is asked learns the CID: strangers are not asked for
        what a service keeps to its members."""
        if root is None or self._is_private(root):
            return self._from_members
        return self._from_anybody

    def _is_private(self, cid: str) -> bool:
        """Say whether this is an output, a console or an app of a service that shows it to nobody
        else, and was not published."""
        node = self._node
        if cid in node.publishing.roots():
            return False
        membership = node.core.membership
        for service in set(node.services.named_or_all(None)) & set(membership.chains):
            folded = membership.folded(service)
            if any(app["bundle"] == cid for app in folded.apps.values()):
                return True
            if not folded.has_public_results and node.cids.is_made(
                service, node.core.fold(service), cid
            ):
                return True
        return False

    async def block(self, cid: str) -> bytes:
        """Return a block of a file or folder."""
        await self._from_members.look(cid)
        return await self._node.content.store.get(cid)

    async def entries(self, cid: str, root: str | None = None) -> list[Item]:
        """Return the entries of a folder."""
        return await self._serving_of(root).entries(cid)

    def _sources(self) -> Iterator[tuple[str, list[str]]]:
        """Yield every service that content may be of, with the members to ask for it."""
        node = self._node
        membership = node.core.membership
        for service in sorted(membership.taken_up):
            yield service, self.members_to_ask(service)
        for service in sorted(node.core.guests.services):
            yield service, sorted(set(node.core.guests.given_by.values()))

    def members_to_ask(self, service: str) -> list[str]:
        """Return who may be asked for content of a service: connected members, and who gave this
        node results of it lately."""
        connected = self._node.core.membership.connected_members(service)
        finder = self._node.finder
        return list(dict.fromkeys([*connected, *(finder.givers(service) if finder else [])]))

    async def add(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Add bytes; returns (CID, size)."""
        with self._node.blocks.in_use.working(_NAMED_S):
            return await self._node.content.add_stream(chunks)

    async def add_file(self, path: Path) -> Added:
        """Add a file of this machine."""
        with self._node.blocks.in_use.working(_NAMED_S):
            return await self._node.content.add_file(path)

    async def add_folder(self, entries: Sequence[tuple[str, str | None]]) -> tuple[str, int]:
        """Add a folder of files that are here; returns (CID, size)."""
        with self._node.blocks.in_use.working(_NAMED_S):
            return await build_folder(self._node.content, entries)
