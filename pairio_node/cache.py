"""The cache of a node: which content stays, which goes when the quota is nearly full, and what its
owner sees and says of it.

    every LOOK_S: uses noted, promises kept --> nearly full? collect in a thread --> still no room?
        the core is told (`StorageRoom`): no job begins here until there is room again

A block that does not fit is collected for at once, wherever it is put (`make_room`).
"""

import json
import logging
import math
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from pairio_node.blocks import StoreUnavailable, in_use
from pairio_node.blocks.collection import Collection, Looked, Needs, Report
from pairio_node.blocks.collector import Stopped
from pairio_node.cache_needs import (
    PROMISED,
    PUBLISHED,
    REFERENCED,
    Name,
    Promises,
    Roots,
    key_of,
    roots,
)
from pairio_node.cache_view import gc_view, row_view, rows_of
from pairio_node.errors import NotFoundError, StorageFullError, UnavailableError, UserError
from pairio_node.store import CommitRows
from pairio_protocol import events as ev
from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.fold import RequestState

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["PIN_NOTE", "Cache"]

#: The note (`store.CommitRows.notes`) of a pin.
PIN_NOTE: Final = "pin"
LOOK_S: Final = 1.0
#: After the start it is looked what lies here, for how much of it is promised.
FIRST_LOOK_S: Final = 10.0
#: It is collected again after this time; when it did not help, each time twice as long.
AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 600.0
#: Uses noted between two looks; further ones of one second are not.
TOUCHED_MAX: Final = 10_000
#: Results that were let go and are not fetched again for others; the oldest are forgotten.
LET_GO_MAX: Final = 10_000
#: Copies for others that are fetched here may take this much of the quota.
PROMISED_PERCENT_MAX: Final = 50
PINS_MAX: Final = 10_000
_DAY_MS: Final = 86_400_000
_ANY_SIZE: Final = 2**40
_T = TypeVar("_T")

log = logging.getLogger("pairio.cache")


@dataclass(frozen=True)
class Pin:
    """What the owner wants to stay: a CID, or a job's result with its outputs."""

    name: str  # the CID or the job id
    service: str  # of the job; empty for a CID
    result: str
    cids: tuple[str, ...]
    since_unix_ms: int


class Cache:
    """The cache of one node. Its store may be asked and given to as long as the node lives."""

    def __init__(
        self,
        node: "Node",
        find: Callable[[str, str | None], tuple[str, RequestState]],
        ensure: Callable[[str, str, RequestState], Awaitable[None]],
    ) -> None:
        self._node = node
        self._find = find
        self._ensure = ensure
        self._store = node.contents.store
        self.collection = Collection(
            node.contents, self._store.quota_bytes, self._needs, self._on_gone
        )
        self._store.make_room = self.collection.make_room
        self.pins: dict[str, Pin] = {}
        self.promises = Promises(self._write)
        self.counters = {"hits": 0, "reads": 0, "holds_refused": 0, "looks_failed": 0}
        self._roots = Roots()
        self._touched: set[str] = set()
        self._made: dict[tuple[str, str], float] = {}  # (service, CID) -> when, oldest first
        self._let_go: OrderedDict[str, None] = OrderedDict()
        self._token: trio.lowlevel.TrioToken | None = None
        self._kick = trio.Event()
        self._said_full = False
        self._next_s, self._pause_s = 0.0, AGAIN_S
        self._said_failing = ""
        #: Fetched to hold copies for others since it was last looked what lies here.
        self._copied_bytes = 0

    # -- its life -----------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, notes: Iterable[tuple[str, str, bytes]]) -> None:
        """Take what the disk held, and look after the store until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        notes = list(notes)
        for kind, name, data in notes:
            if kind == PIN_NOTE:
                raw = json.loads(data)
                self.pins[name] = Pin(name, raw["service"], raw["result"], tuple(raw["cids"]),
                                      raw["since"])  # fmt: skip
        self.promises.restore(notes)
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await trio.to_thread.run_sync(self._clean_sync)
        started_s, looked = trio.current_time(), False
        try:
            while True:
                await self._look()
                if not looked and trio.current_time() - started_s > FIRST_LOOK_S:
                    looked = True  # how much is promised already
                    await self._try(self._look_at_store)
                self._kick = trio.Event()
                with trio.move_on_after(LOOK_S):
                    await self._kick.wait()
        finally:
            self.collection.stop()

    async def _look(self) -> None:
        """Note uses and promises; collect when it is time; say when there is no room."""
        self.promises.look(self._node.core)
        touched, self._touched = self._touched, set()
        if touched:
            await trio.to_thread.run_sync(self._touch_sync, touched)
        if self._store.db.has_free_pages:
            await trio.to_thread.run_sync(self._store.db.give_back_sync)
        if self._store.db.waits:  # nobody waits for it, and it is not to wait long
            with suppress(StorageFullError):  # whoever needs it kept is told
                await trio.to_thread.run_sync(self._store.db.settle_sync)
        is_news = self.collection.is_short and not self._said_full
        if self.collection.is_high and (is_news or trio.current_time() >= self._next_s):
            freed = self.collection.counters["evicted_bytes"]
            await self._try(self._collect)
            in_vain = freed == self.collection.counters["evicted_bytes"]
            self._next_s = trio.current_time() + self._pause_s
            self._pause_s = min(self._pause_s * 2, AGAIN_MAX_S) if in_vain else AGAIN_S
            self._say_room()
        elif self._said_full and not self.collection.is_short:
            self._say_room()

    async def _try(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do what is done again later if the disk fails now, or whoever keeps the blocks."""
        try:
            await work()
        except (UnavailableError, StorageFullError) as error:
            self.counters["looks_failed"] += 1
            if self._said_failing != error.message:  # once, not with each further try
                self._said_failing = error.message
                hint = f" ({error.hint})" if error.hint else ""
                log.warning("nothing is let go from the cache: %s%s", error.message, hint)
        else:
            self._said_failing = ""

    def _soon(self) -> None:
        """What may go has changed: collect, if it is time, without a pause."""
        self._next_s, self._pause_s = 0.0, AGAIN_S
        self._kick.set()

    async def _collect(self, to_bytes: int | None = None, dry: bool = False) -> Report:
        return await _in_thread(partial(self.collection.collect, to_bytes, dry=dry))

    def _say_room(self) -> None:
        """Tell the core, which refuses jobs, when there is no room or there is some again."""
        short = self.collection.is_short
        if short == self._said_full:
            return
        self._said_full = short
        room = ev.StorageRoom()
        if short:
            protected = sum(size for why, size in self.collection.sizes.items() if why != "cache")
            room = ev.StorageRoom(
                f"{_size(self.collection.room_needed_bytes)} free",
                f"{_size(self.collection.room_bytes)} free of {_size(self.collection.quota_bytes)}"
                f"; {_size(protected)} must stay (see `pairio cache stats` there)",
            )
        self._node.driver.post(room)

    def _touch_sync(self, cids: set[str]) -> None:
        with suppress(StoreUnavailable):  # then they seem older than they are
            for cid in cids:
                self._store.touch_sync(cid)

    def _write(self, notes: tuple[tuple[str, str, bytes], ...]) -> None:
        """Store notes with the next transaction; a disk that fails says so with the next commit."""
        core = self._node.core

        def on_done(error: Exception | None) -> None:
            if error is not None:
                core.ctx.counters["cache notes not stored"] += len(notes)

        assert self._node.writer is not None
        self._node.writer.submit(CommitRows(notes=notes), on_done)

    # -- what a collection asks and tells (in its thread) -----------------------------------------

    def _needs(self) -> Needs:
        if self._token is None:
            raise Stopped
        try:
            return trio.from_thread.run(self._find_roots, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise Stopped from None

    async def _find_roots(self) -> Needs:
        pins = {pin.name: pin.cids for pin in self.pins.values()}
        promise_ms = round(self._node.config.promise_days * _DAY_MS)
        self._roots = await roots(self._node.core, pins, self.promises, promise_ms)
        self._roots.keep(REFERENCED, self._node.references.roots())
        self._roots.keep(PUBLISHED, self._node.publishing.roots())
        self._copied_bytes = 0  # what has come by now is seen
        return self._roots.needs()

    def _on_gone(self, cids: set[str]) -> None:
        results = self._roots.results_of(cids)
        self._remove_bundles(lambda cid: cid in cids)
        try:
            assert self._token is not None
            self._token.run_sync_soon(self._tell_core, cids, results)
        except trio.RunFinishedError:
            return  # the core is gone as well; the next start finds what is here

    def _remove_bundles(self, is_gone: Callable[[str], bool]) -> None:
        """Remove the unpacked folders of bundles that are gone, in a thread."""
        folder = self._node.home.path / "apps"
        for path in list(folder.iterdir()) if folder.exists() else ():
            if is_gone(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _clean_sync(self) -> None:
        """Remove what earlier starts left unpacked: half, or of bundles that are gone."""
        self._remove_bundles(lambda name: name.endswith(".part") or not self._is_here(name))

    def _is_here(self, cid: str) -> bool:
        try:
            return self._store.has(cid)
        except (CidError, StoreUnavailable):
            return True  # not ours; or not known

    def _tell_core(self, cids: set[str], results: dict[str, list[str]]) -> None:
        self._node.code.forget(cids)
        self._node.preparation.forget(cids)
        for service, keys in results.items():
            self.promises.drop(keys)
            self._let_go.update(dict.fromkeys(keys))
            self._node.driver.post(ev.ContentDropped(service, tuple(keys)))
        while len(self._let_go) > LET_GO_MAX:
            self._let_go.popitem(last=False)

    # -- what the node asks and tells ----------------------------------------------------------

    def used(self, *cids: str) -> None:
        """These were used now: read, served, asked for."""
        self.counters["reads"] += 1
        if len(self._touched) < TOUCHED_MAX:
            self._touched.update(cids)

    def hit(self, service: str, result: str) -> None:
        """A job was answered with a result that was there."""
        self.counters["hits"] += 1
        found = self._node.core.fold(service).results.get(result)
        if found is not None:
            document = found.document
            self.used(*(cid for cid, _, _ in document.outputs.values()), document.console)

    async def is_here(self, service: str, cids: Sequence[str]) -> bool:
        """Say whether all this content is here whole for a service, and kept for good."""
        content = self._node.contents.of(service)
        try:
            for cid in cids:
                if await content.missing(cid):
                    return False
            await self._node.contents.settle(service)
        except (ValueError, LookupError, UserError, OSError):
            return False  # no content at all, or a store that fails: a fetch says so
        return True

    def on_made(self, service: str, cids: Iterable[str]) -> None:
        """A run here has stored this for a service."""
        now_s = trio.current_time()
        while self._made and next(iter(self._made.values())) <= now_s - in_use.LINGER_S:
            del self._made[next(iter(self._made))]
        for cid in cids:
            self._made.pop((service, cid), None)  # the newest last
            self._made[service, cid] = now_s

    def has_just_made(self, ticket: str, service: str, cids: Iterable[str]) -> bool:
        """Say whether this node's own result, whose copies it sees to, was stored so short ago that
        it need not be looked for: what a run made stays while its end lingers."""
        since_s = trio.current_time() - in_use.LINGER_S
        asked, _ = key_of(ticket)
        if asked or any(self._made.get((service, cid), -math.inf) < since_s for cid in cids):
            return False
        with self._store.in_use.lock:
            return all(map(self._store.in_use.covers, cids))

    def room_for_copy(self, ticket: str) -> int:
        """Return how many bytes may be fetched to hold a copy: for others no more than their share.

        Raises:
            StorageFullError: the node is full, the share is used up, or it was let go here before.
        """
        asked, key = key_of(ticket)
        copies = self._node.core.replication.copies.get(key)
        if not asked and copies is not None and copies.is_answer:  # somebody here asked for it anew
            self._let_go.pop(key, None)
        share = self.collection.quota_bytes * PROMISED_PERCENT_MAX // 100
        share -= self.collection.sizes.get(PROMISED, 0) + self._copied_bytes
        if key in self._let_go or self._said_full or (asked and share <= 0):
            self.counters["holds_refused"] += 1
            raise StorageFullError("no room here for a further copy", hint="see docs/cache.md")
        return share if asked else _ANY_SIZE

    def on_copied(self, ticket: str, size_bytes: int) -> None:
        """So much was fetched to hold a copy."""
        self._copied_bytes += size_bytes if key_of(ticket)[0] else 0

    def on_held(self, ticket: str, service: str) -> None:
        """A copy that replication asked for is here."""
        self.promises.on_held(ticket, service, self._node.clock.unix_ms())

    # -- the facade ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the node's status says of the store."""
        return {
            "usedBytes": self._store.used_bytes,
            "quotaBytes": self.collection.quota_bytes,
            "full": self._said_full,
        }

    async def stats(self) -> dict[str, Any]:
        """Return quota, use by reason, and what was counted."""
        looked = await self._look_at_store()
        collection = self.collection
        return {
            "quotaBytes": collection.quota_bytes,
            "usedBytes": self._store.used_bytes,
            "roomBytes": collection.room_bytes,
            "full": self._said_full,
            "blocks": len(looked.survey.blocks),
            "byReason": dict(looked.sizes),
            "pins": len(self.pins),
            "promises": len(self.promises.kept),
            "counters": {**self.counters, **collection.counters},
        }

    async def ls(self, limit: int) -> dict[str, Any]:
        """Return what is here: the roots most recently used first, at most `limit`."""
        looked = await self._look_at_store()
        rows = await trio.to_thread.run_sync(rows_of, looked, self._roots)
        said = [row_view(self._node.core, row, self._names(row.cid)) for row in rows[:limit]]
        return {"roots": said, "count": len(rows)}

    async def _look_at_store(self) -> Looked:
        return await _in_thread(self.collection.look)

    def _names(self, cid: str) -> list[Name]:
        return self._roots.names.get(cid, [])

    async def gc(self, *, everything: bool, dry: bool) -> dict[str, Any]:
        """Let go what may go: down to the mark that is kept in the background, or everything."""
        report = await self._collect(0 if everything else None, dry)
        named = [(cid, self._names(cid)) for cid in report.roots[:1000]]
        self._say_room()
        return gc_view(self._node.core, report, named, dry)

    async def pin(self, name: str, service: str | None) -> dict[str, Any]:
        """Keep a job's result with its outputs, or what lies under a CID, until it is unpinned."""
        if len(self.pins) >= PINS_MAX:
            raise UserError(
                f"{PINS_MAX} pins are kept already", hint="unpin some: `pairio cache unpin`"
            )
        with self._store.in_use.working():
            pin = await self._make_pin(name, service)
        kept = self.pins[pin.name] = self.pins.get(pin.name, pin)
        row = {"service": kept.service, "result": kept.result, "cids": list(kept.cids)}
        data = json.dumps({**row, "since": kept.since_unix_ms}).encode()
        self._write(((PIN_NOTE, kept.name, data),))
        return self._pin_view(kept)

    async def _make_pin(self, name: str, service: str | None) -> Pin:
        now_ms = self._node.clock.unix_ms()
        try:
            found, state = self._find(name, service)
        except NotFoundError:
            await self._check_here(name)
            return Pin(name, "", "", (name,), now_ms)
        result, cids = await self._result(found, state)
        return Pin(state.job, found, result, cids, now_ms)

    async def _result(self, service: str, state: RequestState) -> tuple[str, tuple[str, ...]]:
        """Return the result of a job and its content, fetched if need be."""
        fold = self._node.core.fold(service)
        result = fold.answer_for(state, fold.resolve(state.job)) or fold.result_of(state)
        if result is None:
            raise UserError(
                f"job {state.job} has no result yet", hint="wait for it: pairio job show"
            )
        document = result.document
        cids = dict.fromkeys([*(cid for cid, _, _ in document.outputs.values()), document.console])
        for cid in filter(None, cids):
            await self._ensure(cid, service, state)
        return result.cid, tuple(filter(None, cids))

    async def _check_here(self, cid: str) -> None:
        try:
            parse_cid(cid)
        except CidError:
            raise NotFoundError(
                f"{cid[:100]!r} is no job known here, and no CID",
                hint="`pairio job ls` lists the jobs, `pairio cache ls` the content",
            ) from None
        missing = await self._node.content.missing(cid)
        if missing:
            raise NotFoundError(
                f"{cid} is not here whole: {len(missing)} blocks are missing",
                hint="pin the job that made it, or read it first: it comes with that",
            )

    def unpin(self, name: str) -> dict[str, Any]:
        """Let what was pinned go when its turn comes. Nothing else that needs it changes."""
        parts = name if len(name) >= 8 else name + " "  # no pin has a space
        names = [n for n in self.pins if n == name or n.startswith(parts) or n.endswith(parts)]
        if len(names) != 1:
            raise NotFoundError(
                f"{name[:100]!r} is not pinned",
                hint="`pairio cache ls` shows what is; a pin is named by its job id or CID",
            )
        pin = self.pins.pop(names[0])
        self._write(((PIN_NOTE, pin.name, b""),))
        self._soon()
        return self._pin_view(pin)

    def all_pins(self) -> dict[str, Any]:
        """Return the pins."""
        return {"pins": [self._pin_view(pin) for pin in self.pins.values()]}

    def _pin_view(self, pin: Pin) -> dict[str, Any]:
        petnames = self._node.core.membership.petnames
        return {
            "name": pin.name,
            "kind": "job" if pin.result else "content",
            "serviceName": petnames.get(pin.service, pin.service) or None,
            "resultCid": pin.result or None,
            "cids": list(pin.cids),
            "timestampPinnedSec": pin.since_unix_ms / 1000,
        }


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Do long work in a thread; a caller that goes does not wait for its end.

    Raises:
        UnavailableError: the node stops, or the store cannot be read.
    """
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg]
    except Stopped:
        raise UnavailableError("the node stops") from None
    except OSError as error:
        raise UnavailableError(
            f"the block store cannot be read: {error.strerror or error}",
            hint="look at the disk of the node's home; it goes on by itself",
        ) from None


def _size(count: int) -> str:
    """Return bytes as people read them."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
