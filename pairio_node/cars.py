"""Results in files: exported as a CAR with all that they rest on, and imported from one.

An import stores content first, as a stream; then what the file says of a service is handed to the
core, where it counts by what it is. Nothing is trusted because it was in the file.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.blocks import BlockCorrupt
from pairio_node.errors import UnavailableError, UserError
from pairio_node.results import Rests
from pairio_protocol import events as ev
from pairio_protocol.car import CarReader, car_header, car_section
from pairio_protocol.cid import DAG_CBOR, parse_cid
from pairio_protocol.documents import decode
from pairio_protocol.errors import DecodeError
from pairio_protocol.evidence import Evidence
from pairio_protocol.export import Export, pack_export, results_in, unpack_export
from pairio_protocol.limits import (
    CHANGES_PER_REPLY_MAX,
    CONTENT_BLOCK_SIZE_BYTES_MAX,
    CONTENT_BLOCKS_MAX,
)

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Cars"]

_HINT = "export it again; `ipfs dag export CID` makes files that are read too"


class Cars:
    """What the API asks about files; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    # -- exporting ------------------------------------------------------------------------------

    async def export(self, rests: Rests) -> AsyncIterator[bytes]:
        """Return a result and all that it rests on as a CAR, a piece at a time.

        Raises:
            UnavailableError: some of it is not here (`Results.bring` was to fetch it).
        """
        for cid in rests.contents:
            missing = await self._node.content.missing(cid)
            if missing:
                raise UnavailableError(
                    f"content {cid} cannot be exported: {len(missing)} blocks of it are missing",
                    hint="try again when a member that has it is up",
                )
        try:
            made = pack_export(rests.evidence, rests.records, rests.contents)
        except DecodeError as error:
            raise UnavailableError(str(error), hint="try again when its worker is up") from None
        return self._car(made)

    async def _car(self, made: Export) -> AsyncIterator[bytes]:
        yield car_header(made.root)
        for cid, data in made.blocks.items():
            yield car_section(cid, data)
        seen = set(made.blocks)
        for root in made.contents:
            left = [root]
            while left:
                cid = left.pop()
                if cid in seen:
                    continue
                seen.add(cid)
                yield car_section(cid, await self._node.content.store.get(cid))
                entries = (await self._node.content.node(cid)).entries
                left += [entry.cid for entry in reversed(entries) if entry.cid not in seen]
                if len(seen) > CONTENT_BLOCKS_MAX:
                    raise UserError(f"an export of more than {CONTENT_BLOCKS_MAX} blocks")

    # -- importing ------------------------------------------------------------------------------

    async def import_(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Take a CAR; say what was in it and what of it counts here.

        Raises:
            UserError: no CAR, or an export that is damaged. StorageFullError. Content that was read
            until then is here, and goes when its place is needed.
        """
        reader, blocks, size = CarReader(), 0, 0
        came: set[bytes] = set()
        with self._node.blocks.in_use.working():
            try:
                async for data in chunks:
                    blocks += await trio.to_thread.run_sync(self._store, reader, data, came)
                    size += len(data)
                roots = reader.finish()
            except (DecodeError, BlockCorrupt) as error:
                raise UserError(f"the file cannot be imported: {error}", hint=_HINT) from None
            answer = {"roots": list(roots), "blocks": blocks, "size": size}
            evidence = await trio.to_thread.run_sync(self._evidence, roots)
            if evidence is None:
                return {**answer, "serviceId": None, "serviceName": None, "results": []}
            return {**answer, **await self._take(evidence, came)}

    def _store(self, reader: CarReader, data: bytes, came: set[bytes]) -> int:
        """Store the blocks that are whole with this data, in a thread; return their number. `came`
        has their hashes, as many as an export may have."""
        count = 0
        for cid, block, _ in reader.feed(data):
            self._node.content.store.put_sync(cid, block)
            if len(came) < CONTENT_BLOCKS_MAX:
                came.add(parse_cid(cid).digest)
            count += 1
        return count

    def _evidence(self, roots: tuple[str, ...]) -> Evidence | None:
        """Return what an export says; None of a file with content only. In a thread."""
        block = self._node.results.block
        data = block(roots[0]) if len(roots) == 1 else None
        if data is None or parse_cid(roots[0]).codec != DAG_CBOR:
            return None
        try:
            kind = decode(data, CONTENT_BLOCK_SIZE_BYTES_MAX).get("type")
        except DecodeError:
            return None  # what other programs put into dag-cbor
        if kind != "pairio/export":
            return None
        try:
            return unpack_export(roots[0], block)[0]
        except DecodeError as error:
            raise UserError(f"the export is damaged: {error}", hint=_HINT) from None

    async def _take(self, evidence: Evidence, came: set[bytes]) -> dict[str, Any]:
        """Hand evidence to the core; let the service have the content of what counts, as far as it
        was in the file: a result may name what lies here for another service."""
        membership, service = self._node.core.membership, evidence.service
        if service not in membership.taken_up:
            why_not = "this node is not in its service"
            return {
                "serviceId": service,
                "serviceName": None,
                "results": [_row(cid, why_not) for cid, _ in evidence.asked],
            }
        whys = await self._hand_over(evidence)
        fold = self._node.core.fold(service)
        rows = []
        for cid, _ in evidence.asked:
            if cid in fold.results:
                rests = await self._node.results.rests(cid, service, ask=False)
                for content in rests.contents:
                    here, missing = await self._node.content.walk(content)
                    if not missing and all(parse_cid(block).digest in came for block in here):
                        await self._node.contents.share(service, content)
            why_not = "" if cid in fold.results else whys.get(cid, "it does not count here")
            rows.append(_row(cid, why_not))
        name = membership.petnames.get(service, service)
        return {"serviceId": service, "serviceName": name, "results": rows}

    async def _hand_over(self, evidence: Evidence) -> dict[str, str]:
        """Tell the core; return why results do not count, by CID."""
        step, service = CHANGES_PER_REPLY_MAX, evidence.service

        async def tell(**what: Any) -> dict[str, str]:
            answer = await self._node.driver.call(
                lambda call: ev.ImportEvidence(call, service, **what)
            )
            refused: dict[str, str] = answer["refused"]
            return refused

        for start in range(0, len(evidence.changes), step):
            await tell(changes=evidence.changes[start : start + step])
        for start in range(0, len(evidence.forks), step):
            await tell(forks=evidence.forks[start : start + step])
        whys: dict[str, str] = {}
        for start in range(0, len(evidence.segments), step):
            segments = evidence.segments[start : start + step]
            for number, why_not in (await tell(segments=segments)).items():
                whys.update(dict.fromkeys(results_in([segments[int(number)]]), why_not))
        return whys


def _row(cid: str, why_not: str) -> dict[str, Any]:
    return {"resultCid": cid, "counts": not why_not, "why": why_not or None}
