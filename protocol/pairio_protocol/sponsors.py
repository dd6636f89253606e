"""Sponsors: what strangers ask of a public service, at a member who may submit.

    ask --known result--> done                       a hit costs the stranger nothing
        --beyond a limit, not normal, ...--> refused, and counted
        --else: a request of this node's own, with `sponsor_of`--> waits --result--> done
                                                                         --canceled, expired--> over

The job is the name: who asks again, also at another sponsor, waits for the same run or finds its
result. Asks are forgotten with the stranger's connection; their requests go on. All is bounded:
what is looked at in a second, what one stranger and all together have open and may ask in an hour.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pairio_protocol.apps import needs_of
from pairio_protocol.documents import document_cid
from pairio_protocol.effects import GuestReads
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import RequestState, Resolution, ResultInfo
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import (
    ASKS_PER_SECOND_ALL,
    ASKS_PER_SECOND_EACH,
    GUEST_EXPIRY_MS,
    GUEST_REQUESTS_OPEN_MAX,
)
from pairio_protocol.messages import Ask, Asked, AskNoMore, Follow, WantChanges
from pairio_protocol.normalise import is_normal
from pairio_protocol.open_submit import OpenSubmit, is_for_strangers
from pairio_protocol.records import Cancel, Record, Request, Result
from pairio_protocol.service import Chain

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["Sponsors"]

_HOUR_MS = 3_600_000
_SECOND_MS = 1_000
_Key = tuple[str, str]  # (guest, ask)


@dataclass
class _Waiting:
    """An ask of a connected stranger that has no answer yet."""

    service: str
    job: str
    ends_unix_ms: int
    result: str = ""  # accepted here, and being copied


class _Counts:
    """How many of each peer, and of all, in a span of time that then begins anew."""

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._began_ms = 0
        self._of: dict[str, int] = {}
        self._all = 0

    def take(self, peer: str, each: int, altogether: int, now_ms: int) -> bool:
        """Count one more, unless that is more than one peer, or all together, may have."""
        if now_ms - self._began_ms >= self._span_ms:
            self._began_ms, self._of, self._all = now_ms, {}, 0
        if self._of.get(peer, 0) >= each or self._all >= altogether:
            return False
        self._of[peer] = self._of.get(peer, 0) + 1
        self._all += 1
        return True


def _why_no_place(guest: str, here: list[str], everywhere: int, allowed: OpenSubmit) -> str:
    """Return why a guest has no place besides those `here`: one service's limits are no other's."""
    if here.count(guest) >= allowed.open_max:
        return "open"
    if len(here) >= allowed.all_open_max or everywhere >= GUEST_REQUESTS_OPEN_MAX:
        return "all_open"
    return ""


class Sponsors:
    """The asks of strangers that this node looks after."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._looked = _Counts(_SECOND_MS)
        self._by_hour: dict[str, _Counts] = {}  # service -> requests written for strangers
        self._waiting: dict[_Key, _Waiting] = {}
        self._by_job: dict[tuple[str, str], set[_Key]] = {}
        self._settling: set[_Key] = set()
        #: own requests that may be open: (service, request id) -> guest
        self._open: dict[tuple[str, str], str] = {}
        self._pruned_ms = 0
        self._expires_ms: int | None = None

    # -- from strangers ---------------------------------------------------------------------

    def on_follow(self, peer: str, follow: Follow) -> None:
        """Show a public service's list to a stranger."""
        chain = self._public(follow.service)
        if chain is None:
            self._refuse(peer, follow.service, "", "not_public")
            return
        if self._may_look(peer):
            want = WantChanges(follow.service, follow.start, follow.after)
            self._core.membership.on_want_changes(peer, want, shown=True)
            self._ctx.send(peer, Asked(follow.service, "", "waits", "", b""))
        else:
            self._refuse(peer, follow.service, "", "busy")

    def shows(self, peer: str, service: str) -> bool:
        """Say whether a stranger who asks for changes is shown them now."""
        chain = self._public(service)
        return chain is not None and not chain.has_named(peer) and self._may_look(peer)

    def _may_look(self, peer: str) -> bool:
        each, altogether = ASKS_PER_SECOND_EACH, ASKS_PER_SECOND_ALL
        return self._looked.take(peer, each, altogether, self._ctx.now_ms)

    def on_ask(self, peer: str, ask: Ask) -> None:
        """Answer from the cache, sponsor, or refuse in words."""
        key = (peer, ask.ask)
        if key in self._waiting:
            self._ctx.send(peer, Asked(ask.service, ask.ask, "waits", "", b""))
            return
        code = self._why_not(peer, ask)
        if code:
            self._refuse(peer, ask.service, ask.ask, code)

    def on_ask_no_more(self, peer: str, message: AskNoMore) -> None:
        """A stranger withdraws: so do we, unless another stranger waits for the same."""
        waiting = self._forget((peer, message.ask))
        if waiting is None:
            self._ctx.refuse(peer, "an ask that is not known is withdrawn")
            return
        if (waiting.service, waiting.job) not in self._by_job:
            self._withdraw(waiting.service, {waiting.job}, peer)
        self._ctx.send(peer, Asked(message.service, message.ask, "over", "canceled", b""))

    def _public(self, service: str) -> Chain | None:
        """Return the chain of a public service for whose guests this node does something."""
        chain = self._core.membership.active(service)
        if chain is None or OpenSubmit.of(chain.now) is None:
            return None
        return chain

    def _refuse(self, peer: str, service: str, ask: str, code: str) -> None:
        self._ctx.refuse(peer, f"a stranger's ask: {code}")
        self._ctx.send(peer, Asked(service, ask, "refused", code, b""))

    # -- deciding ---------------------------------------------------------------------------

    def _why_not(self, peer: str, ask: Ask) -> str:
        """Answer an ask or take it up; else return why not. The cheap questions come first."""
        chain = self._public(ask.service)
        if chain is None:
            return "not_public"
        if not self._ctx.config.guests or "submit" not in chain.now.roles_of(self._ctx.me):
            return "no_sponsor"
        allowed = OpenSubmit.of(chain.now)
        assert allowed is not None
        if allowed.beyond(ask.resources):
            return "limits"
        if not self._may_look(peer):
            return "busy"
        try:
            document = decode_job(ask.definition)
        except DecodeError:
            return "definition"
        app = chain.now.apps.get(document["app"])
        if app is None or not is_normal(document, app):
            return "definition"
        if not is_for_strangers(document):
            return "inputs"
        if needs_of(chain.now.apps, document).exclusive:
            return "needs"
        record = self._record(peer, ask)
        waiting = _Waiting(ask.service, document_cid(ask.definition), record.expires_unix_ms)
        answer = self._known(record, document, waiting, chain.epoch)
        key = (peer, ask.ask)
        if answer is not None:
            return self._take_up(key, waiting, allowed) or self._settle(key, waiting, answer)
        return self._take_up(key, waiting, allowed) or self._sponsor(key, waiting, record, allowed)

    def _record(self, guest: str, ask: Ask) -> Request:
        return Request(
            definition=ask.definition,
            mode="use",
            salt_of="",
            resources=ask.resources,
            isolation_min="",
            tags=ask.tags,
            batch="",
            priority=0,
            targets=(),
            replicas=self._ctx.config.replicas,
            expires_unix_ms=self._ctx.unix_ms + GUEST_EXPIRY_MS,
            issued_unix_ms=self._ctx.unix_ms,
            sponsor_of=guest,
        )

    def _known(
        self, record: Request, document: dict[str, Any], waiting: _Waiting, epoch: int
    ) -> ResultInfo | None:
        if not self._core.fold(waiting.service).has_results(waiting.job):
            return None
        state = RequestState("", self._ctx.me, record, waiting.job, document, b"", epoch)
        fold = self._core.fold(waiting.service)
        return fold.answer_for(state, Resolution(waiting.job, document))

    def _take_up(self, key: _Key, waiting: _Waiting, allowed: OpenSubmit) -> str:
        """Wait for an ask, if there is place; else say why not."""
        here = [who for (who, _), one in self._waiting.items() if one.service == waiting.service]
        code = _why_no_place(key[0], here, len(self._waiting), allowed)
        if code:
            return code
        self._waiting[key] = waiting
        self._by_job.setdefault((waiting.service, waiting.job), set()).add(key)
        return ""

    def _sponsor(self, key: _Key, waiting: _Waiting, record: Request, allowed: OpenSubmit) -> str:
        """Write a request in the stranger's name, unless one is under way for the same job."""
        code = "" if self._is_under_way(waiting) else self._write(key[0], waiting, record, allowed)
        if code:
            self._forget(key)
            return code
        self._note_expiry(waiting.ends_unix_ms)
        self._ctx.send(key[0], Asked(waiting.service, key[1], "waits", "", b""))
        return ""

    def _is_under_way(self, waiting: _Waiting) -> bool:
        fold = self._core.fold(waiting.service)
        states = [fold.requests[name] for name in fold.by_job.get(waiting.job, ())]
        wanted = [s for s in states if s.record.sponsor_of and fold.is_wanted(s, self._ctx.unix_ms)]
        if wanted:
            waiting.ends_unix_ms = max(s.record.expires_unix_ms for s in wanted)
        return bool(wanted)

    def _write(self, guest: str, waiting: _Waiting, record: Request, allowed: OpenSubmit) -> str:
        service = waiting.service
        if code := self._no_place(service, guest, allowed):
            return code
        counts = self._by_hour.setdefault(service, _Counts(_HOUR_MS))
        each, altogether = allowed.requests_per_hour, allowed.all_per_hour
        if not counts.take(guest, each, altogether, self._ctx.now_ms):
            return "per_hour"
        name = self._core.own_request_id(service, *self._core.append(service, record))
        self._open[service, name] = guest
        self._ctx.counters["requests sponsored"] += 1
        return ""

    def _no_place(self, service: str, guest: str, allowed: OpenSubmit) -> str:
        """Say why no further request is written; what is over is looked for once a second."""
        code = self._why_no_place(service, guest, allowed)
        if not code or self._ctx.now_ms - self._pruned_ms < _SECOND_MS:
            return code
        self._pruned_ms = self._ctx.now_ms
        self._open = {
            (where, name): who
            for (where, name), who in self._open.items()
            if self._is_open(where, name)
        }
        return self._why_no_place(service, guest, allowed)

    def _why_no_place(self, service: str, guest: str, allowed: OpenSubmit) -> str:
        here = [who for (where, _), who in self._open.items() if where == service]
        return _why_no_place(guest, here, len(self._open), allowed)

    def _is_open(self, service: str, name: str) -> bool:
        if service not in self._core.membership.taken_up:
            return False
        fold = self._core.fold(service)
        if name not in fold.requests:  # of this turn: it is sealed in a moment
            return self._core.logs.has_pending()
        return fold.is_open(name, self._ctx.unix_ms)

    # -- what becomes of it -------------------------------------------------------------------

    def on_result(self, service: str, result: ResultInfo) -> None:
        """A result was accepted: those who wait for it hear when it is safe."""
        for key in sorted(self._by_job.get((service, result.document.job), ())):
            waiting = self._waiting[key]
            if not waiting.result:
                self._settle(key, waiting, result)

    def _settle(self, key: _Key, waiting: _Waiting, result: ResultInfo) -> str:
        waiting.result = result.cid
        self._settling.add(key)
        if not self._core.replication.is_safe(result.cid):
            self._core.copy_again(waiting.service, result.cid)
        return ""

    def look(self) -> None:
        """Tell those whose results are copied to where they can be had: here."""
        for key in sorted(self._settling):
            waiting = self._waiting[key]
            if not self._core.replication.is_settled(waiting.result):
                continue
            result = self._core.fold(waiting.service).results.get(waiting.result)
            data = self._document(waiting.service, result) if result is not None else None
            self._forget(key)
            guest, ask = key
            if result is None or data is None:
                self._ctx.send(guest, Asked(waiting.service, ask, "over", "lost", b""))
                continue
            document = result.document
            cids = (*(cid for cid, _, _ in document.outputs.values()), document.console)
            self._ctx.emit(GuestReads(guest, waiting.service, cids))
            self._ctx.send(guest, Asked(waiting.service, ask, "done", "", data))

    def _document(self, service: str, result: ResultInfo) -> bytes | None:
        """Return the signed document; its segment is not for strangers: it holds what else its
        author wrote at that moment."""
        held = self._core.logs.get(result.segment) or self._core.retention.get(result.segment)
        if held is None:
            return None
        records: list[Any] = held.records()
        found = [r.document for r in records if isinstance(r, Result)]
        return next((data for data in found if document_cid(data) == result.cid), None)

    def _forget(self, key: _Key) -> _Waiting | None:
        waiting = self._waiting.pop(key, None)
        self._settling.discard(key)
        if waiting is not None:
            keys = self._by_job[waiting.service, waiting.job]
            keys.discard(key)
            if not keys:
                del self._by_job[waiting.service, waiting.job]
        return waiting

    def _withdraw(self, service: str, jobs: set[str] | None, guest: str | None) -> None:
        """Cancel this node's open requests for strangers: of these jobs, in that name."""
        fold = self._core.fold(service)
        for (where, name), who in list(self._open.items()):
            state = fold.requests.get(name) if where == service else None
            wanted = jobs is None or (state is not None and state.job in jobs)
            if state is None or not wanted or (guest is not None and who != guest):
                continue
            del self._open[where, name]
            if fold.is_wanted(state, self._ctx.unix_ms):
                cancel: Record = Cancel((name,), self._ctx.unix_ms)
                self._core.append(service, cancel)

    def on_peer_down(self, peer: str) -> None:
        """A stranger is gone; what it asked for goes on, and is found when it asks again."""
        for key in [key for key in self._waiting if key[0] == peer]:
            self._forget(key)

    def on_service_changed(self, service: str) -> None:
        """The list has changed: in a service that is not public strangers have nothing any more,
        and from a node that may not submit they go to another sponsor."""
        chain = self._core.membership.active(service)
        submits = chain is not None and "submit" in chain.now.roles_of(self._ctx.me)
        is_public = self._public(service) is not None
        if is_public and submits:
            return
        code = "no_sponsor" if is_public else "not_public"
        for key, waiting in list(self._waiting.items()):
            if waiting.service == service:
                self._over(key, code)
        if submits:
            self._withdraw(service, None, None)

    def on_canceled(self, service: str, requests: tuple[str, ...]) -> None:
        """Requests are withdrawn, by an admin maybe: who waits for them in vain is told."""
        fold = self._core.fold(service)
        states = [fold.requests[name] for name in requests if name in fold.requests]
        for job in {s.job for s in states if s.record.sponsor_of and s.canceled}:
            for key in sorted(self._by_job.get((service, job), ())):
                waiting = self._waiting[key]
                if not waiting.result and not self._is_under_way(waiting):
                    self._over(key, "canceled")

    def _over(self, key: _Key, code: str) -> None:
        waiting = self._forget(key)
        if waiting is not None:
            self._ctx.send(key[0], Asked(waiting.service, key[1], "over", code, b""))

    def on_restored(self) -> None:
        """After a restart: which requests this node has open for strangers."""
        for service in self._core.membership.taken_up:
            for name, state in self._core.fold(service).requests.items():
                guest = state.record.sponsor_of
                if guest and state.author == self._ctx.me and self._is_open(service, name):
                    self._open[service, name] = guest

    # -- time -------------------------------------------------------------------------------

    def _note_expiry(self, unix_ms: int) -> None:
        at_ms = self._ctx.now_ms + max(0, unix_ms - self._ctx.unix_ms) + _SECOND_MS
        self._expires_ms = min(self._expires_ms or at_ms, at_ms)

    def tick(self) -> None:
        """Say what has expired."""
        if self._expires_ms is None or self._ctx.now_ms < self._expires_ms:
            return
        self._expires_ms = None
        for key, waiting in list(self._waiting.items()):
            if waiting.ends_unix_ms < self._ctx.unix_ms:
                self._over(key, "expired")
            else:
                self._note_expiry(waiting.ends_unix_ms)

    def deadline_ms(self) -> int | None:
        """When something expires."""
        return self._expires_ms if self._waiting else None
