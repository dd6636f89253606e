"""The inputs of a job that is submitted here: named by CID, shared with its service, and who holds
them, so that the run can go to the bytes.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from pairio_node.blocks import BlockMissing, FetchFailed
from pairio_node.blocks.holders import find_holders
from pairio_node.blocks.unixfs import Node as Unixfs
from pairio_node.blocks.unixfs import UnixfsError, parse_node
from pairio_node.errors import as_user_errors
from pairio_node.urls import split_url
from pairio_protocol.cid import DAG_PB, parse_cid
from pairio_protocol.errors import DefinitionError
from pairio_protocol.ids import rendezvous
from pairio_protocol.machines.holdings import Held
from pairio_protocol.normalise import parse_source, path_in_folder

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Inputs", "JobInputs"]

#: A submit waits so long for an input by CID that only Bitswap peers have; what came is kept.
_SUBMIT_FETCH_S: Final = 60.0


@dataclass
class Inputs:
    """Of a job: CIDs that are copied to members (`local`), and who has how much (`held`)."""

    local: list[str] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)


class JobInputs:
    """What a node does with the inputs of jobs before its core sees them."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def name_all(self, definition: dict[str, Any]) -> None:
        """Give every input that names something in a folder the CID of what lies there; refuse
        URLs that no node fetches."""
        for entry in definition.get("inputFiles", []):
            url = str(entry.get("url"))
            if url.startswith(("http://", "https://")):
                split_url(url)
            if url.startswith(("http://", "https://", "ipfs://")):
                await self.name_inside(entry, url)

    async def name_inside(self, entry: dict[str, Any], url: str) -> None:
        """Give an input that names something in a folder the CID of what lies there."""
        with as_user_errors():
            inside = path_in_folder(url)
        if inside is not None:
            found = await self._node.files.look(*inside, inside[0])
            entry["url"] = f"ipfs://{found.cid}"
            entry["fileBaseName"] = entry.get("fileBaseName") or inside[1][-1]

    async def look(self, service: str, definition: dict[str, Any]) -> Inputs:
        """Let the service have the inputs that lie here; say what lies where. The owner names
        them, wherever they came from."""
        inputs = Inputs()
        node = self._node
        if "submit" not in node.core.membership.folded(service).roles_of(node.peer_id):
            return inputs  # it will be refused
        for entry in definition.get("inputFiles", []):
            try:
                cid = parse_source(str(entry.get("url", ""))).get("cid")
                if cid is not None:
                    await self._look_at(service, cid, inputs)
            except (DefinitionError, UnixfsError):
                continue  # the core will say what is wrong with it
        return inputs

    async def _look_at(self, service: str, cid: str, inputs: Inputs) -> None:
        node = self._node
        if await node.contents.share(service, cid):
            if cid not in node.references.roots():  # that is too much to be copied unasked
                inputs.local.append(cid)
            await self._note_size(cid, inputs)
        elif holders := await self._holders(service, cid):
            size_bytes = _size_of(parse_node(cid, next(iter(holders.values()))))
            inputs.held.append((cid, size_bytes, tuple(sorted(holders))))
        elif await self._fetch_outside(service, cid):
            inputs.local.append(cid)
            await self._note_size(cid, inputs)

    async def _note_size(self, cid: str, inputs: Inputs) -> None:
        if parse_cid(cid).codec != DAG_PB:
            return  # one block: too little to matter
        try:
            size_bytes = _size_of(await self._node.content.node(cid))
        except BlockMissing:
            return  # gone this moment
        inputs.held.append((cid, size_bytes, (self._node.peer_id,)))

    async def _holders(self, service: str, cid: str) -> dict[str, bytes]:
        """Ask those who may run the job, if it is worth asking."""
        if parse_cid(cid).codec != DAG_PB:
            return {}
        membership = self._node.core.membership
        roles_of = membership.folded(service).roles_of
        peers = [p for p in membership.connected_members(service) if "compute" in roles_of(p)]
        peers.sort(key=lambda peer: rendezvous(cid, peer), reverse=True)
        return await find_holders(self._node.exchange, service, cid, peers)

    async def _fetch_outside(self, service: str, cid: str) -> bool:
        """Fetch an input from Bitswap peers, if they give it soon."""
        node = self._node
        if node.bitswap is None or not node.bitswap.peers():
            return False
        with trio.move_on_after(_SUBMIT_FETCH_S):
            try:
                await node.outside.fetch_outside(service, cid)
            except FetchFailed:
                return False  # a member may have it
            return True
        return False

    def only_here(self, view: dict[str, Any]) -> bool:
        """Say whether an open job has an input that is not copied, since it is by reference."""
        if view["isSettled"]:
            return False
        urls = [str(entry["url"]) for entry in view["jobDefinition"]["inputFiles"]]
        cids = [url.removeprefix("ipfs://") for url in urls if url.startswith("ipfs://")]
        return not self._node.references.roots().isdisjoint(cids)


def _size_of(node: Unixfs) -> int:
    """Return the bytes of a file; of a folder those of its blocks, about as many."""
    return node.size_bytes or sum(entry.total_bytes for entry in node.entries)
