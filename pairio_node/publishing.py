"""What anybody may read from this node: results and content that its owner published, and results
of services whose policy says so. Both are served over Bitswap to whoever asks.

Published are a job's definition, its result, outputs and console; not inputs, nor code: they may be
somebody else's. Definition and result become blocks of the store for that.
"""

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.blocks.base import BlockMissing
from pairio_node.blocks.public import OWN, PublicBlocks
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import NotFoundError, StorageFullError, UnavailableError, UserError
from pairio_node.service_views import waiting_view
from pairio_protocol import events as ev
from pairio_protocol.cid import DAG_CBOR, CidError, parse_cid
from pairio_protocol.documents import encode
from pairio_protocol.fold import ResultInfo
from pairio_protocol.records import Result, result_cid

if TYPE_CHECKING:
    from pairio_node.node import Node
    from pairio_protocol.core import NodeCore

__all__ = ["Publishing", "result_bytes"]

Json = dict[str, Any]
#: How often it is looked for new results of services whose results are public.
LOOK_S = 1.0
#: Results looked at in one go.
_BATCH = 64
#: A result whose outputs are not here whole is looked at again after this time.
_RETRY_S = 30.0


def result_bytes(core: "NodeCore", info: ResultInfo) -> bytes | None:
    """Return a result's signed document, None when its segment is not here."""
    held = core.logs.get(info.segment) or core.retention.get(info.segment)
    if held is None:
        return None
    records: list[Any] = held.records()
    documents = [record.document for record in records if isinstance(record, Result)]
    return next((data for data in documents if result_cid(data) == info.cid), None)


class Publishing:
    """What the API asks about public content; methods may raise `UserError`. `blocks` is what may
    be served; `run` keeps it up with the services."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._path = node.home.path / "public"
        self._file = self._path / "published.json"
        self._published: list[Json] = self._load()
        self._shown: set[tuple[str, str]] = set()  # (service, result) that are public whole
        self._again_s: dict[tuple[str, str], float] = {}  # when to look again at one that is not
        self._turn = trio.Lock()
        # Also what is content by reference, read from its file and checked each time.
        self.blocks = PublicBlocks(node.contents.store, self._path, self.open_services)

    def roots(self) -> set[str]:
        """Return the CIDs that the owner published: they are to stay here."""
        return {cid for entry in self._published for cid in entry["cids"]}

    def results(self) -> set[str]:
        """Return the CIDs of the results that the owner published."""
        return {entry["result"] for entry in self._published if entry.get("result")}

    # -- the owner's ------------------------------------------------------------------------

    async def publish(self, what: str, service: str | None) -> Json:
        """Let anybody read a job's result or some content; fetched from members first if need be.
        Answers with the entry and whether it is `changed`."""
        found = await self._find(what, service)
        async with self._turn:
            same = next((e for e in self._published if e["cids"] == found["cids"]), None)
            blocks = await self._whole(found["cids"])
            entry = {**found, "sinceUnixMs": self._node.clock.unix_ms(), "blocks": len(blocks)}
            if same is None:  # listed first: nothing is public that is not listed
                await self._store([*self._published, entry])
            new = await trio.to_thread.run_sync(self.blocks.mark_sync, OWN, blocks)
        if new:
            self._on_more_public()
        return {**(same or entry), "changed": same is None}

    async def unpublish(self, what: str) -> Json:
        """Let nobody else read it any more; what others have read stays theirs."""
        async with self._turn:
            chosen = [e for e in self._published if what in (e["id"], *e["cids"])]
            chosen = chosen or [e for e in self._published if len(what) >= 8 and _is_end(what, e)]
            if len(chosen) != 1:
                raise NotFoundError(
                    f"{what!r} is not published" if not chosen else f"{what!r} is several",
                    hint="`pairio published` lists what is",
                )
            left = [e for e in self._published if e is not chosen[0]]
            cids = [cid for entry in left for cid in entry["cids"]]
            blocks = await self._here(cids)
            # Hidden first: what cannot be hidden, as on a full disk, is still listed.
            await trio.to_thread.run_sync(self.blocks.replace_sync, OWN, blocks)
            await self._store(left)
        return {**chosen[0], "changed": True}

    def published(self) -> Json:
        """Return what the owner published, and the services whose results are public."""
        names = self._node.core.membership.petnames
        services = [{"serviceName": names[s], "serviceId": s} for s in self.open_services()]
        return {"published": self._published, "services": services}

    async def _find(self, what: str, service: str | None) -> Json:
        """Return the entry to make: of content by CID, or of a job's result."""
        try:
            if parse_cid(what).codec != DAG_CBOR:
                return {"id": what, "kind": "content", "cids": [what]}
        except CidError:
            pass  # a part of a job's id, or a request's
        return await self._find_result(what, service)

    async def _find_result(self, what: str, service: str | None) -> Json:
        node = self._node
        found, state = node.jobs.find(what, service)
        fold = node.core.fold(found)
        info = fold.result_of(state) or fold.answer_for(state, fold.resolve(state.job))
        if info is None:
            raise UserError(
                f"job {state.job} has no result yet",
                hint="wait for it: pairio submit --wait, or pairio job show",
            )
        documents = dict(self._documents(found, info, {state.job: state.document}))
        if info.cid not in documents:
            raise UnavailableError(
                f"the signed result {info.cid} of job {state.job} is not here",
                hint="publish it on a member's node",
            )
        for cid in _contents(info):
            await node.files.ensure(cid, found, state)
        for cid, data in documents.items():
            await node.content.store.put(cid, data)
        cids = [*documents, *_contents(info)]
        return {"id": state.job, "kind": "result", "result": info.cid, "cids": cids}

    async def _whole(self, cids: list[str]) -> set[str]:
        found: set[str] = set()
        for cid in cids:
            try:
                here, missing = await self._node.content.walk(cid)
            except UnixfsError as error:
                raise UserError(f"{cid} is not content that can be published: {error}") from None
            if missing:
                raise NotFoundError(
                    f"content {cid} is not here whole: {len(missing)} blocks are missing",
                    hint="add it first, or publish it on a node that has it",
                )
            found |= set(here)
        return found

    async def _here(self, cids: Iterable[str]) -> set[str]:
        """Return the blocks of published content that are here."""
        found: set[str] = set()
        for cid in cids:
            found |= set((await self._node.content.walk(cid))[0])
        return found

    def _load(self) -> list[Json]:
        try:
            entries = json.loads(self._file.read_text())["published"]
            return [entry for entry in entries if isinstance(entry["cids"], list)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read {self._file}: {error}", hint="mend it, or move it away"
            ) from None

    async def _store(self, entries: list[Json]) -> None:
        def write() -> None:
            try:
                self._path.mkdir(mode=0o700, exist_ok=True)
                part = self._file.with_name(f"{self._file.name}.tmp")
                with part.open("w") as file:
                    json.dump({"published": entries}, file)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self._file)
            except OSError as error:
                raise StorageFullError(f"cannot publish: {error.strerror}") from None

        await trio.to_thread.run_sync(write)
        self._published = entries

    def is_public(self, service: str, result: str) -> bool:
        """Say whether anybody may read a result."""
        if any(entry.get("result") == result for entry in self._published):
            return True
        return service in self.open_services()

    def documents(self, service: str, info: ResultInfo) -> dict[str, bytes]:
        """Return a result's documents by CID, its own and those of the jobs that it answers, as far
        as they are known here."""
        return dict(self._documents(service, info, {}))

    # -- services' --------------------------------------------------------------------------

    async def set_results(self, service: str, is_public: bool) -> Json:
        """Let anybody read the results of a service, or members only; as an admin."""
        node = self._node
        found = node.services.id_of(service)
        answer = await node.driver.call(lambda call: ev.SetResults(call, found, is_public))
        waiting = waiting_view(node.core, found, answer["proposal"])
        return {**self.policy(found), "changed": answer["changed"], "proposal": waiting}

    def policy(self, service: str) -> Json:
        """Return what a service's policy says of its results."""
        node = self._node
        found = node.services.id_of(service)
        folded = node.core.membership.folded(found)
        return {
            "serviceName": node.core.membership.petnames.get(found, folded.name),
            "serviceId": found,
            "results": "public" if folded.has_public_results else "members",
        }

    def open_services(self) -> list[str]:
        """Return the services whose results anybody may read, sorted."""
        membership = self._node.core.membership
        taken = sorted(membership.taken_up)
        return [service for service in taken if membership.folded(service).has_public_results]

    async def run(self) -> None:
        """Make new results of such services public, until cancelled."""
        while True:
            for service in self.open_services():
                await self._show_new(service)
            await trio.sleep(LOOK_S)

    async def _show_new(self, service: str) -> None:
        now_s, new = trio.current_time(), 0
        results = self._node.core.fold(service).results
        due = (
            info
            for cid, info in list(results.items())
            if (service, cid) not in self._shown and self._again_s.get((service, cid), 0) <= now_s
        )
        for _, info in zip(range(_BATCH), due, strict=False):
            key = (service, info.cid)
            try:
                shown, is_whole = await self._show(service, info)
            except (UnixfsError, UserError, BlockMissing, OSError):
                # A member's nonsense; a disk that is full, a store that does not answer.
                shown, is_whole = 0, False
            new += shown
            self._again_s.pop(key, None)
            if is_whole:
                self._shown.add(key)
            else:
                self._again_s[key] = now_s + _RETRY_S
        if new:
            self._on_more_public()

    def _on_more_public(self) -> None:
        """More may be read by anybody than before."""
        if self._node.bitswap is not None:
            self._node.bitswap.on_more_public()

    async def _show(self, service: str, info: ResultInfo) -> tuple[int, bool]:
        """Make public what is here of a result; return how many blocks are new to the public, and
        whether all of it is here."""
        content = self._node.contents.of(service)
        documents = dict(self._documents(service, info, {}))
        for cid, data in documents.items():
            await content.store.put(cid, data)
        is_whole = {info.cid, info.document.job} <= set(documents)
        blocks = set(documents)
        for cid in _contents(info):
            here, missing = await content.walk(cid)
            if missing:
                is_whole = False
            else:
                blocks |= set(here)
        new = await trio.to_thread.run_sync(self.blocks.mark_sync, service, blocks)
        return new, is_whole

    def _documents(
        self, service: str, info: ResultInfo, known: dict[str, Json]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield (CID, bytes) of a result and of the jobs that it answers, as far as known here."""
        fold = self._node.core.fold(service)
        jobs = dict(known)
        for job in (info.document.job, *fold.origins(info.document.job)):
            if job in fold.definitions:
                jobs[job] = fold.definitions[job]
                resolution = fold.resolve(job)
                if resolution.job is not None and resolution.document is not None:
                    jobs[resolution.job] = resolution.document
        for job, document in jobs.items():
            yield job, encode(document)
        data = result_bytes(self._node.core, info)
        if data is not None:
            yield info.cid, data


def _contents(info: ResultInfo) -> list[str]:
    """Return what a result links to besides its job."""
    outputs = [cid for cid, _, _ in info.document.outputs.values()]
    return list(dict.fromkeys([*outputs, info.document.console]))


def _is_end(what: str, entry: Json) -> bool:
    return str(entry["id"]).endswith(what)
