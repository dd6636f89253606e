"""Who needs which content here: pins, live jobs, promised copies, apps; and what the rest is.

Looked up anew for each collection, in slices, so that the loop goes on meanwhile. What comes to be
needed in between was put or found by work under way, which keeps it (`blocks.in_use`).

A copy is *promised* when this node said `held` to a member who asked for it, or is one of those
that hold a safe result of its own requests. A promise ends when the result counts no more, the
request is over (inputs), or after the owner's `promise_days`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import trio

from pairio_node.blocks.collection import Needs
from pairio_protocol.apps import archives_of
from pairio_protocol.codec import pack, unpack
from pairio_protocol.core import NodeCore
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import ResultInfo, ServiceFold
from pairio_protocol.limits import COPIES_MAX

__all__ = [
    "APPS",
    "LIVE",
    "PINNED",
    "PROMISED",
    "PROMISE_NOTE",
    "PUBLISHED",
    "REFERENCED",
    "Name",
    "Promises",
    "Roots",
    "key_of",
    "roots",
]

PINNED: Final = "pinned"
LIVE: Final = "live job"
PROMISED: Final = "promised"
PUBLISHED: Final = "published"
APPS: Final = "app"
REFERENCED: Final = "referenced"
_REASONS: Final = (PINNED, LIVE, PROMISED, APPS, PUBLISHED, REFERENCED)
#: The note (`store.CommitRows.notes`) of a promise.
PROMISE_NOTE: Final = "promise"
_INPUTS: Final = "/inputs"
#: Copies that are being made of a result, while others are connected, keep it for so long.
_COPYING_MS: Final = 600_000
#: What a member asked to be held, but what it is nobody says, is forgotten after this time.
_TOLD_MS: Final = 600_000
#: Of this node's own results that are being copied, so many are looked at in one look.
_OWN_LOOKED_AT: Final = 500
#: Results looked at before the loop has its turn.
_SLICE: Final = 200


class Name(NamedTuple):
    """What a root is: `key` names the result, the job or the app."""

    kind: str  # output | console | input | app
    service: str
    key: str


@dataclass
class Roots:
    """Roots by the reason why they must stay, and names of all that are known."""

    reasons: dict[str, set[str]] = field(default_factory=lambda: {why: set() for why in _REASONS})
    names: dict[str, list[Name]] = field(default_factory=dict)

    def keep(self, reason: str, cids: Iterable[str], name: Name | None = None) -> None:
        """Note what must stay."""
        for cid in cids:
            self.reasons[reason].add(cid)
            if name is not None:
                self.name(cid, name)

    def name(self, cid: str, name: Name) -> None:
        """Note what a root is."""
        known = self.names.setdefault(cid, [])
        if name not in known[-8:]:  # an empty console is that of many results
            known.append(name)

    def needs(self) -> Needs:
        """Return them as a collection asks for them."""
        return Needs(self.reasons, list(self.names))

    def results_of(self, cids: Iterable[str]) -> dict[str, list[str]]:
        """Return the results, by service, whose outputs or console are among these blocks."""
        found: dict[str, dict[str, None]] = {}
        for cid in cids:
            for name in self.names.get(cid, ()):
                if name.kind in ("output", "console"):
                    found.setdefault(name.service, {})[name.key] = None
        return {service: list(keys) for service, keys in found.items()}


@dataclass(frozen=True)
class _Promise:
    service: str
    since_unix_ms: int


def key_of(ticket: str) -> tuple[bool, str]:
    """Return whether another member asked for the copy that a ticket (`ef.FetchBlocks`) names, and
    its key: a result, or `REQUEST/inputs`."""
    key = ticket.partition("|")[2]
    return bool(key), key or ticket.removeprefix("copy:")


class Promises:
    """Copies that others count on, by result or by `REQUEST/inputs`. `write` stores notes."""

    def __init__(self, write: Callable[[tuple[tuple[str, str, bytes], ...]], None]) -> None:
        self._write = write
        self.kept: dict[str, _Promise] = {}
        #: Held here because a member asked for it; what it is may be told a moment later.
        self._asked: dict[str, _Promise] = {}
        #: This node's own, which others count on when it is safe; looked at in turn.
        self._own: dict[str, _Promise] = {}

    def restore(self, notes: Iterable[tuple[str, str, bytes]]) -> None:
        """Take what the disk held."""
        for kind, key, data in notes:
            if kind == PROMISE_NOTE:
                try:
                    service, since_unix_ms = unpack(data)
                except (DecodeError, ValueError, TypeError):
                    continue  # of a version to come: the next round of repair asks again
                self.kept[key] = _Promise(str(service), int(since_unix_ms))

    def on_held(self, ticket: str, service: str, unix_ms: int) -> None:
        """A fetch that replication asked for has brought everything (`Fetched`)."""
        asked, key = key_of(ticket)
        if key in self.kept:
            return  # also one that has lapsed: it is not promised anew
        waiting = self._asked if asked else self._own
        waiting[key] = _Promise(service, unix_ms)
        if len(waiting) > COPIES_MAX:
            del waiting[next(iter(waiting))]

    def look(self, core: NodeCore) -> None:
        """Turn what somebody counts on by now into promises."""
        new = {}
        for key, promise in list(self._asked.items()):
            known = _is_known(core, promise.service, key)
            if known or core.ctx.unix_ms - promise.since_unix_ms > _TOLD_MS:
                del self._asked[key]
            if known:
                new[key] = promise
        for key in list(islice(self._own, _OWN_LOOKED_AT)):
            promise = self._own.pop(key)
            if core.replication.is_safe(key):
                new[key] = promise
            elif core.replication.is_copying(key):
                self._own[key] = promise  # behind the others
        self.kept |= new
        if new:
            rows = ((k, pack([p.service, p.since_unix_ms])) for k, p in new.items())
            self._write(tuple((PROMISE_NOTE, key, data) for key, data in rows))

    def drop(self, keys: Iterable[str]) -> None:
        """These are not held here any more."""
        gone = [key for key in keys if self.kept.pop(key, None) is not None]
        if gone:
            self._write(tuple((PROMISE_NOTE, key, b"") for key in gone))


def _is_known(core: NodeCore, service: str, key: str) -> bool:
    if service not in core.membership.taken_up:
        return False
    fold = core.fold(service)
    return (
        key.removesuffix(_INPUTS) in fold.requests
        if key.endswith(_INPUTS)
        else (key in fold.results)
    )


async def roots(
    core: NodeCore,
    pins: Mapping[str, Iterable[str]],
    promises: Promises,
    promise_ms: int,
) -> Roots:
    """Return everything that is needed here, and what the rest is. `pins` are CIDs by pin."""
    found = Roots()
    promises.look(core)
    for cids in pins.values():
        found.keep(PINNED, cids)
    for service in sorted(core.membership.taken_up):
        _apps(core, service, found)
    _live(core, found)
    for service in sorted(core.folds):
        fold = core.folds[service]
        for number, result in enumerate(list(fold.results.values())):
            if number % _SLICE == 0:
                await trio.lowlevel.checkpoint()
            promise = promises.kept.get(result.cid)
            held = promise is not None and _is_due(core, promise, promise_ms)
            for cid, name in _contents(service, result):
                found.keep(PROMISED, [cid], name) if held else found.name(cid, name)
    await _inputs(core, promises, promise_ms, found)
    return found


def _is_due(core: NodeCore, promise: _Promise, promise_ms: int) -> bool:
    return max(0, core.ctx.unix_ms - promise.since_unix_ms) < promise_ms  # clocks jump


def _contents(service: str, result: ResultInfo) -> Iterator[tuple[str, Name]]:
    for cid, _, _ in result.document.outputs.values():
        yield cid, Name("output", service, result.cid)
    if result.document.console:
        yield result.document.console, Name("console", service, result.cid)


def _apps(core: NodeCore, service: str, found: Roots) -> None:
    """Bundles of the apps on the list, and of those that wait for an admin's signature."""
    lists = [core.membership.folded(service)]
    lists += [weighed.after for weighed in core.membership.proposals.of(service)]
    for folded in lists:
        for name, app in folded.apps.items():
            found.keep(APPS, [app["bundle"], *archives_of(app)], Name("app", service, name))


def _live(core: NodeCore, found: Roots) -> None:
    """Inputs and code of the runs here and of the requests that this node sees to, and results of
    which copies are being made."""
    for task in core.worker.tasks.values():
        service = task.award.service
        document = task.resolution.document or task.state.document
        cids = [*_sources(core.fold(service), document), task.bundle]
        cids += archives_of({"processors": [task.processor]})
        found.keep(LIVE, cids, Name("input", service, task.state.job))
    for wish in list(core.coordinator.wishes.values()):
        fold = core.fold(wish.service)
        state = fold.requests.get(wish.request)
        if state is not None:
            cids = _sources(fold, state.document)
            found.keep(LIVE, cids, Name("input", wish.service, state.job))
    since_ms = core.ctx.now_ms - _COPYING_MS
    for copies in core.replication.copies.values():
        if copies.began_ms > since_ms and core.membership.connected_members(copies.service):
            found.keep(LIVE, copies.cids)


def _sources(fold: ServiceFold, document: dict[str, Any]) -> list[str]:
    """Return the CIDs that a job reads, as far as results of other jobs are known."""
    cids = []
    for entry in document["inputs"]:
        source = entry["source"]
        if "cid" in source:
            cids.append(source["cid"])
        for result in fold.results_for(source["job"]) if "job" in source else ():
            given = result.document.outputs.get(source["output"])
            if given is not None:
                cids.append(given[0])
    return cids


async def _inputs(core: NodeCore, promises: Promises, promise_ms: int, found: Roots) -> None:
    """Name the inputs of all requests; those that were promised stay while a request is open."""
    over = []
    for service in sorted(core.folds):
        fold = core.folds[service]
        for number, state in enumerate(list(fold.requests.values())):
            if number % _SLICE == 0:
                await trio.lowlevel.checkpoint()
            cids = [e["source"]["cid"] for e in state.document["inputs"] if "cid" in e["source"]]
            if not cids:
                continue
            key, name = f"{state.id}{_INPUTS}", Name("input", service, state.job)
            promise = promises.kept.get(key)
            for cid in cids:
                found.name(cid, name)
            if promise is None:
                continue
            if not fold.is_open(state.id, core.ctx.unix_ms):
                over.append(key)
            elif _is_due(core, promise, promise_ms):
                found.keep(PROMISED, cids)
    promises.drop(over)
