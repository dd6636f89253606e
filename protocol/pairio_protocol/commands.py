"""What the local owner and clients ask for: jobs here, services in `service_commands.py`.

A submit is answered when its request is committed here and acked `stored` by one other member if
one is connected (at most STORED_ACK_MS, else `replicated` is 0 and said so). A hit answers at once.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.apps import needs_of
from pairio_protocol.documents import document_cid, encode
from pairio_protocol.effects import Fail, JobChanged, Reply
from pairio_protocol.errors import DefinitionError
from pairio_protocol.evidence_commands import EvidenceCommands
from pairio_protocol.fold import RequestState, ServiceFold
from pairio_protocol.join_commands import JoinCommands
from pairio_protocol.limits import (
    CANCELS_PER_RECORD_MAX,
    HANDLES_MAX,
    RECORD_SIZE_BYTES_MAX,
    REQUEST_EXPIRY_MS,
    REQUESTS_OPEN_PER_AUTHOR_MAX,
    SEALED_MS,
    STORED_ACK_MS,
    STORED_ASKED,
)
from pairio_protocol.machines.deadlines import Deadlines, earliest_ms
from pairio_protocol.messages import Ack
from pairio_protocol.normalise import normalise
from pairio_protocol.public_commands import PublicCommands
from pairio_protocol.records import Cancel, Request
from pairio_protocol.revoked import REVOKED_HINT, why_without
from pairio_protocol.segment import record_size
from pairio_protocol.service import Chain
from pairio_protocol.service_commands import ServiceCommands

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["SUBMIT_NOTE", "Commands"]

#: The kind of note that says which request a client's submit became.
SUBMIT_NOTE = "submit"

#: Seqs of local handles (hits have no record) lie above those of any log.
_HANDLE_SEQ = 2**62


@dataclass
class _Submit:
    """A submit whose answer waits for the disk and for another member."""

    call: int
    service: str
    request: str
    job: str
    local_content: tuple[str, ...]
    asked: bool = False
    segment: bytes | None = None
    committed: bool = False
    acked: set[str] = field(default_factory=set)
    late: bool = False


class Commands:
    """Local calls, and the submits that wait for their answer."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._services = ServiceCommands(core)
        self._joins = JoinCommands(core, self._services)
        self._public = PublicCommands(core, self._services)
        self._evidence = EvidenceCommands(core, self._services)
        self._submits: dict[str, _Submit] = {}
        self._by_ticket: dict[int, list[_Submit]] = {}
        self._by_segment: dict[bytes, list[_Submit]] = {}
        self._asked_to_store: dict[bytes, set[str]] = {}  # by segment: once each, not per request
        self._due: Deadlines[str] = Deadlines()  # submits, when they are answered anyway
        self._handles: deque[tuple[str, str]] = deque()
        self._handle_count = 0
        self._no_hits: set[int] = set()  # calls whose hit had no content: they become requests
        #: request id -> members that acked it `stored`
        self.replicated: dict[str, int] = {}

    def on_command(self, event: Any) -> None:
        """Do what a local call asks, or fail it with the reason."""
        try:
            if self._public.on_command(event) or self._evidence.on_command(event):
                return
            match event:
                case ev.Submit():
                    self._submit(event)
                case ev.CancelRequests():
                    self._cancel(event)
                case _:
                    if not self._joins.on_command(event):
                        self._services.on_command(event)
        except DefinitionError as error:
            self._no_hits.discard(event.call)
            self._ctx.emit(Fail(event.call, str(error), error.hint))

    def on_no_hit(self, event: ev.Submit) -> None:
        """Nobody holds the content of what would have answered a submit: it is asked for."""
        self._no_hits.add(event.call)
        self.on_command(event)

    def _cancel(self, event: ev.CancelRequests) -> None:
        """Withdraw requests; local handles of cached answers have nothing to withdraw."""
        service, chain = self._services.find(event.service)
        fold = self._core.fold(service)
        mine = chain.now.member_of(self._ctx.me)
        names = []
        for name in event.requests:
            state = fold.requests.get(name)
            if state is None:
                raise DefinitionError(f"no request {name!r} on this node")
            if self._ctx.me not in chain.now.admins and chain.now.member_of(state.author) != mine:
                raise DefinitionError(
                    f"request {name} is {state.author}'s",
                    "its submitter may cancel it, or an admin",
                )
            if fold.is_wanted(state, self._ctx.unix_ms):
                names.append(name)
        for start in range(0, len(names), CANCELS_PER_RECORD_MAX):
            page = tuple(names[start : start + CANCELS_PER_RECORD_MAX])
            self._core.append(service, Cancel(page, self._ctx.unix_ms))
        self._services.reply(event.call, {"service": service, "canceled": names})

    # -- jobs -----------------------------------------------------------------------------

    def _submit(self, event: ev.Submit) -> None:
        """Answer from the cache, ask members who may have the result, else append a request."""
        service, chain = self._services.find(event.service)
        folded = chain.now
        if "submit" not in folded.roles_of(self._ctx.me):
            why = why_without(chain, self._ctx.me, "submit")
            told = f" any more: {why}" if why else ""
            hint = f"ask an admin for the role: {', '.join(folded.admins)}"
            if why:
                hint = REVOKED_HINT
            if folded.ended:
                hint = "its admins have ended it: use another service (pairio service ls)"
            raise DefinitionError(
                f"this node may not submit to {self._name_of(service)!r}{told}", hint
            )
        name = event.definition.get("appName")
        if name not in folded.apps:
            known = ", ".join(sorted(folded.apps)) or "none"
            raise DefinitionError(
                f"no app {name!r} in service {event.service!r}", f"its apps are: {known}"
            )
        document = normalise(event.definition, folded.apps[name])
        needs = needs_of(folded.apps, document)
        needs.check_given(event.secrets)
        fold = self._core.fold(service)
        definition = encode(document)
        job = document_cid(definition)
        fold.define(job, document)
        record = self.record_of(event, job, definition, fold)
        size = record_size(record)
        if size > RECORD_SIZE_BYTES_MAX:
            raise DefinitionError(
                f"the request has {size} bytes; at most {RECORD_SIZE_BYTES_MAX}",
                "put large values into an input file, and use shorter tags",
            )
        if self._hit(event, service, chain, fold, document, job, record):
            return
        if self._core.lookups.ask_first(event, service, job):
            return
        if event.call not in self._no_hits and self._core.lookups.ask_further(event, service, job):
            return
        self._no_hits.discard(event.call)
        needs.check_missing(event.secrets)
        waiting = len(self._core.coordinator.wishes) + self._core.logs.pending_count()
        if waiting >= REQUESTS_OPEN_PER_AUTHOR_MAX:
            raise DefinitionError(
                f"{waiting} requests of this node are open; at most {REQUESTS_OPEN_PER_AUTHOR_MAX}",
                "wait until some of them have ended, then submit again",
            )
        request = self._core.own_request_id(service, *self._core.append(service, record))
        if event.key:
            note = f"{service} {request} {self._ctx.unix_ms}".encode()
            self._core.membership.unsaved_notes.append((SUBMIT_NOTE, event.key, note))
        local = event.local_content
        self._core.coordinator.holdings.note(event.held)
        self._submits[request] = _Submit(event.call, service, request, job, local)
        self._due.set(request, self._ctx.now_ms + SEALED_MS)

    def record_of(
        self, event: ev.Submit, job: str, definition: bytes, fold: ServiceFold
    ) -> Request:
        """Return the request that a submit of a job becomes, when no hit answers it."""
        salt_of = ""
        if event.mode == "rerun_failing":
            resolved = fold.resolve(job).job
            failed = fold.last_failure(resolved, fold.definitions[job]) if resolved else None
            salt_of = failed.cid if failed is not None else ""
        try:
            return Request(
                definition=definition,
                mode=event.mode,
                salt_of=salt_of,
                resources=event.resources,
                isolation_min=event.isolation_min,
                tags=event.tags,
                batch=event.batch,
                priority=event.priority,
                targets=event.targets,
                replicas=self._ctx.config.replicas,
                expires_unix_ms=self._ctx.unix_ms + REQUEST_EXPIRY_MS,
                issued_unix_ms=self._ctx.unix_ms,
            )
        except ValueError as error:
            raise DefinitionError(str(error)) from None

    def _hit(
        self,
        event: ev.Submit,
        service: str,
        chain: Chain,
        fold: ServiceFold,
        document: dict[str, Any],
        job: str,
        record: Request,
    ) -> bool:
        """Answer from the cache if there is a result; a local handle stands for the request."""
        self._handle_count += 1
        boot = self._ctx.config.boot
        request = self._core.own_request_id(service, boot, _HANDLE_SEQ + self._handle_count)
        state = RequestState(
            request, self._ctx.me, record, job, document, b"", chain.epoch, cached=True
        )
        if event.mode == "skip_cache":
            return False
        answer = fold.answer_for(state, fold.resolve(job))
        if answer is None or event.call in self._no_hits:
            return False
        if self._core.contents.is_doubted(answer.cid):
            self._no_hits.add(event.call)
            return False
        if not self._core.contents.is_there(service, answer, event):
            return True  # it goes on when that is known
        fold.requests[request] = state
        fold.pin(request, answer.cid)
        fold.by_job.setdefault(job, []).append(request)
        self._handles.append((service, request))
        if len(self._handles) > HANDLES_MAX:
            old_service, old = self._handles.popleft()
            old_fold = self._core.fold(old_service)
            gone = old_fold.requests.pop(old, None)
            if gone is not None:
                old_fold.by_job[gone.job].remove(old)
        self._core.answered(state, answer, service)
        self._ctx.emit(Reply(event.call, {"request": request, "job": job, "service": service}))
        return True

    def reply(self, call: int, value: dict[str, Any]) -> None:
        """Answer a call once what it changed is on disk."""
        self._services.reply(call, value)

    def on_own_request(self, service: str, state: RequestState) -> None:
        """The request is in a sealed segment: ask another member to store it."""
        submit = self._submits.get(state.id)
        if submit is None:
            return
        submit.segment = state.segment
        self._by_segment.setdefault(state.segment, []).append(submit)
        self._due.set(submit.request, self._ctx.now_ms + STORED_ACK_MS)
        membership = self._core.membership
        peers = membership.connected_members(service)
        homes = [p for p in membership.home_nodes(service, state.job) if p in peers]
        for peer in [*homes, *(p for p in peers if p not in homes)][:STORED_ASKED]:
            asked = self._asked_to_store.setdefault(state.segment, set())
            if peer not in asked:
                asked.add(peer)
                self._core.logs.push(peer, state.segment, ack=True)
            submit.asked = True
        self._by_ticket.setdefault(self._core.disk.ticket, []).append(submit)
        if submit.local_content:
            self._core.replication.track(
                f"{state.id}/inputs", service, state.job, submit.local_content, here=True
            )

    def on_committed(self, ticket: int) -> None:
        """The requests of this commit are on disk."""
        for submit in self._by_ticket.pop(ticket, []):
            submit.committed = True
            self._answer(submit)

    def on_commit_failed(self, ticket: int, reason: str) -> None:
        """The requests of this commit are not on disk: say so."""
        for submit in self._by_ticket.pop(ticket, []):
            self._forget(submit)
            self._ctx.emit(
                Fail(
                    submit.call,
                    f"not stored: {reason}",
                    "free disk space, then submit again: the same job is not computed twice",
                    "disk",
                )
            )

    def on_ack(self, peer: str, ack: Ack) -> None:
        """Another member has stored segments."""
        for segment in ack.hashes:
            for submit in list(self._by_segment.get(segment, ())):
                submit.acked.add(peer)
                self._answer(submit)

    def on_service_changed(self, service: str) -> None:
        """What waits to be stored does not count once this node has lost its role: say so."""
        chain = self._core.membership.chains[service]
        if "submit" in chain.now.roles_of(self._ctx.me):
            return
        for submit in [s for s in self._submits.values() if s.service == service]:
            self._fail_revoked(submit)
        self._ctx.emit(JobChanged(service, ""))  # for those who wait for earlier ones

    def _name_of(self, service: str) -> str:
        return self._core.membership.petnames.get(service, service)

    def _fail_revoked(self, submit: _Submit) -> None:
        self._forget(submit)
        chain = self._core.membership.chains[submit.service]
        why = why_without(chain, self._ctx.me, "submit")
        message = f"the request does not count: this node lost its role meanwhile; {why}"
        self._ctx.emit(Fail(submit.call, message.rstrip("; "), REVOKED_HINT, "revoked"))

    def on_peers_changed(self) -> None:
        """With nobody left to ack, nobody is waited for."""
        for submit in list(self._submits.values()):
            self._answer(submit)

    def _answer(self, submit: _Submit) -> None:
        alone = not submit.asked or not self._ctx.connected
        if not submit.committed or not (submit.acked or submit.late or alone):
            return
        self._forget(submit)
        self.replicated[submit.request] = len(submit.acked)
        if len(self.replicated) > HANDLES_MAX:
            del self.replicated[next(iter(self.replicated))]
        self._ctx.emit(Reply(submit.call, {"request": submit.request, "job": submit.job}))
        self._ctx.emit(JobChanged("", submit.job))

    def _forget(self, submit: _Submit) -> None:
        self._submits.pop(submit.request, None)
        self._due.drop(submit.request)
        if submit.segment is not None:
            waiting = self._by_segment.get(submit.segment, [])
            if submit in waiting:
                waiting.remove(submit)
            if not waiting:
                self._by_segment.pop(submit.segment, None)
                self._asked_to_store.pop(submit.segment, None)

    def tick(self) -> None:
        """Go on without those who have not answered in time."""
        self._joins.tick()
        self._services.tick()
        for key in self._due.due(self._ctx.now_ms):
            submit = self._submits[key]
            submit.late = True
            if submit.committed:
                self._answer(submit)
            elif submit.segment is None:  # it was written under a role that is gone
                self._fail_revoked(submit)

    def deadline_ms(self) -> int | None:
        """When a waiting call goes on anyway."""
        return earliest_ms(
            self._due.next_ms(), self._joins.deadline_ms(), self._services.deadline_ms()
        )
