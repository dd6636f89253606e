"""Guests: public services in which this node is no member, and what it asks of their sponsors.

    join:   following --a sponsor shows the list, which says public--> guest
    submit: asking --refused--> the next sponsor --> ... --> all refused: the submit fails, in words
               |
               +--waits--> waiting --done: a signed result, checked--> completed | failed
                              |  ^--sponsor gone or silent: another is asked for the same job
                              +--over--> canceled, expired

A guest keeps the service's list, and nothing else of it: no topic, no logs, no presence. Its jobs
are kept in memory: after a restart the same submit finds the result. A result counts when a worker
of the list signed it for this job; who brought it does not matter.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.apps import needs_of
from pairio_protocol.codec import pack, unpack
from pairio_protocol.documents import encode
from pairio_protocol.effects import Connect, Fail, JobChanged, Reply, WishChanged
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.fold import RequestState
from pairio_protocol.limits import (
    ASK_ANSWER_MS,
    ASK_DEFINITION_SIZE_BYTES_MAX,
    ASK_GIVE_UP_MS,
    ASK_RETRY_MS,
    ASK_TAGS_MAX,
    ASKS_OWN_MAX,
    GUEST_EXPIRY_MS,
    GUEST_SERVICES_MAX,
    HANDLES_MAX,
    NAME_LENGTH_MAX,
)
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.machines.deadlines import Deadlines
from pairio_protocol.messages import Ask, Asked, AskNoMore, Follow
from pairio_protocol.normalise import job_id_of, normalise
from pairio_protocol.open_submit import OpenSubmit, is_for_strangers
from pairio_protocol.records import Request, ResultDocument
from pairio_protocol.service import Chain

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["NOTE", "GuestJob", "Guests"]

NOTE = "guest of"
#: Seqs of guests' handles lie above those of any log, and above those of cached answers.
_HANDLE_SEQ = 2**62 + 2**61

#: code of `asked` -> what it means. What a peer says besides is not shown.
REFUSALS = {
    "not_public": "the service is not public (any more), or not there",
    "no_sponsor": "this member sponsors nobody",
    "limits": "the job asks for more than the service gives to strangers",
    "busy": "it is asked too much just now",
    "definition": "the app is another one there, or is gone",
    "inputs": "a stranger's inputs come by URL",
    "needs": "strangers' jobs have neither secrets nor the network",
    "open": "too many of this node's jobs are open there",
    "all_open": "too many jobs of strangers are open there",
    "per_hour": "as many of this node's, or of all strangers', jobs as an hour may have were asked",
    "silent": "no answer",
    "gone": "the connection broke",
}
#: Refusals after which another sponsor need not be asked.
_FINAL = ("limits", "definition", "inputs", "needs")


@dataclass
class GuestJob:
    """A job that this node asked for as a guest and that is not done."""

    state: RequestState
    service: str
    ask: Ask
    call: int | None
    began_ms: int
    sponsor: str = ""
    accepted: bool = False
    refusals: dict[str, str] = field(default_factory=dict)


class Guests:
    """The public services of this node, and its jobs there by request id."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        #: service -> the peers of its link
        self.services: dict[str, tuple[LinkPeer, ...]] = {}
        self.jobs: dict[str, GuestJob] = {}
        #: request id -> why it ended without a result; and the sponsor that has the result
        self.over: dict[str, str] = {}
        self.given_by: dict[str, str] = {}
        self.refused: dict[str, str] = {}  # service that is not shown -> code
        self._refusals: dict[str, dict[str, str]] = {}  # the same by peer of the link
        self.unsaved: list[tuple[str, str, bytes]] = []
        self._due: Deadlines[str] = Deadlines()
        self._handles: deque[tuple[str, str]] = deque()
        self._count = 0

    # -- services ------------------------------------------------------------------------

    def join(self, event: ev.JoinService) -> None:
        """Become a guest by a public link; the list comes from a peer of the link."""
        link: Link = event.link
        service = link.service
        if service in self._core.membership.taken_up:
            self._ctx.emit(Reply(event.call, {"service": service, "already": True}))
            return
        if service not in self.services and len(self.services) >= GUEST_SERVICES_MAX:
            raise DefinitionError(
                f"this node is a guest of {GUEST_SERVICES_MAX} services already",
                "leave one of them: pairio service leave",
            )
        already = self.is_known(service)
        self.services[service] = link.peers
        self.refused.pop(service, None)
        self._refusals.pop(service, None)
        self._core.membership.followed.add(service)
        peers = [[p.peer, list(p.addresses)] for p in link.peers]
        self.unsaved.append((NOTE, service, pack(peers)))
        self._dial(service)
        for peer in self._hearers(service):
            self._follow(peer, service)
        self._core.commands.reply(event.call, {"service": service, "already": already})

    def restore(self, service: str, data: bytes) -> None:
        """Take a service from disk; its link's peers are dialled again."""
        found: Any = unpack(data)
        peers = tuple(LinkPeer(peer, tuple(addresses)) for peer, addresses in found)
        self.services[service] = peers
        self._core.membership.followed.add(service)
        self._dial(service)

    def leave(self, service: str) -> None:
        """Be a guest no more."""
        if self.services.pop(service, None) is None:
            return
        self.unsaved.append((NOTE, service, b""))
        self.refused.pop(service, None)
        self._refusals.pop(service, None)
        for job in [job for job in self.jobs.values() if job.service == service]:
            self._end(job, "this node is no guest there any more", tell=True)
        self._core.folds.pop(service, None)  # as a member it would begin with other requests
        self._core.membership.forget_followed(service)
        self._ctx.emit(WishChanged(service))

    def is_known(self, service: str) -> bool:
        """Say whether this node is a guest of a public service whose list is here."""
        chain = self._core.membership.chains.get(service)
        public = chain is not None and OpenSubmit.of(chain.now) is not None
        return service in self.services and public

    def names(self, peer: str) -> bool:
        """Say whether a peer is of a public link, or a member where this node is a guest."""
        return any(peer in self._hearers(service) for service in self.services)

    def find(self, name: str) -> str | None:
        """Return the id of the service, of those in which this node is a guest."""
        service = name if name in self.services else self._core.membership.find(name)
        return service if service in self.services else None

    def on_service_changed(self, service: str) -> None:
        """The list has come, or is another: a member is no guest."""
        if service not in self.services:
            return
        if service in self._core.membership.taken_up:
            self.leave(service)
        elif self.is_known(service):
            self.refused.pop(service, None)
        self._ctx.emit(WishChanged(service))

    def _dial(self, service: str) -> None:
        for peer in self.services[service]:
            if peer.peer not in self._ctx.connected and peer.addresses:
                self._ctx.emit(Connect(peer.peer, peer.addresses))

    def _hearers(self, service: str) -> list[str]:
        """Return the connected peers that may know a service: of its link, and its members."""
        of_link = {p.peer for p in self.services.get(service, ())}
        chain = self._core.membership.chains.get(service)
        roles_of = chain.now.roles_of if chain is not None else lambda _: ()
        return [p for p in sorted(self._ctx.connected) if p in of_link or roles_of(p)]

    def _follow(self, peer: str, service: str) -> None:
        chain = self._core.membership.chains.get(service)
        start, after = (chain.epoch, chain.head) if chain is not None else (0, "")
        self._ctx.send(peer, Follow(service, start, after))

    # -- jobs ----------------------------------------------------------------------------

    def submit(self, event: ev.Submit, service: str) -> None:
        """Ask for a job; answered when a sponsor has taken it up.

        Raises:
            DefinitionError: it is not for strangers there, or not well formed.
        """
        chain = self._core.membership.chains.get(service)
        allowed = OpenSubmit.of(chain.now) if chain is not None else None
        if chain is None or allowed is None:
            raise DefinitionError(
                f"service {event.service!r} is not public as far as this node knows",
                "wait until one of its members is connected, or ask for an invitation",
            )
        document = self._document(event, chain, allowed)
        record = self._record(event, document)
        self._count += 1
        boot = self._ctx.config.boot
        name = self._core.own_request_id(service, boot, _HANDLE_SEQ + self._count)
        job = job_id_of(document)
        fold = self._core.fold(service)
        fold.define(job, document)
        state = RequestState(name, self._ctx.me, record, job, document, b"", chain.epoch)
        fold.requests[name] = state
        fold.by_job.setdefault(job, []).append(name)
        ask = Ask(service, name, record.definition, record.resources, record.tags)
        self.jobs[name] = GuestJob(state, service, ask, event.call, self._ctx.now_ms)
        self._keep_few(service, name)
        self._ask(self.jobs[name])

    def _document(self, event: ev.Submit, chain: Chain, allowed: OpenSubmit) -> dict[str, Any]:
        if len(self.jobs) >= ASKS_OWN_MAX:
            raise DefinitionError(
                f"{len(self.jobs)} jobs of this node as a guest are open; at most {ASKS_OWN_MAX}",
                "wait until some of them have ended, then submit again",
            )
        if event.mode != "use" or event.targets or event.priority or event.batch:
            raise DefinitionError(
                "a guest's job is run as it is: nothing runs anew, nor on chosen nodes, nor first",
                "submit it without such options; a cacheBust makes it another job",
            )
        app = str(event.definition.get("appName"))
        if app not in chain.now.apps:
            known = ", ".join(sorted(chain.now.apps)) or "none"
            raise DefinitionError(
                f"no app {app!r} in service {event.service!r}", f"its apps are: {known}"
            )
        document = normalise(event.definition, chain.now.apps[app])
        if not is_for_strangers(document):
            raise DefinitionError(
                "a guest's inputs come by http(s) URL", "put them where the workers can fetch them"
            )
        needs = needs_of(chain.now.apps, document)
        needs.check_given(event.secrets)
        if needs.exclusive:
            raise DefinitionError(
                f"{app}/{document['processor']} needs the network or secrets, which no guest's"
                " job gets",
                "become a member of the service",
            )
        if beyond := allowed.beyond(event.resources):
            raise DefinitionError(
                f"the job asks for more than a guest may have: {beyond}",
                f"pairio service show {event.service} shows the limits",
            )
        return document

    def _record(self, event: ev.Submit, document: dict[str, Any]) -> Request:
        definition = encode(document)
        tags = event.tags
        if len(definition) > ASK_DEFINITION_SIZE_BYTES_MAX:
            raise DefinitionError(
                f"the job definition has {len(definition)} bytes;"
                f" a guest's has at most {ASK_DEFINITION_SIZE_BYTES_MAX}",
                "put large values into an input file",
            )
        if len(tags) > ASK_TAGS_MAX or any(len(tag) > NAME_LENGTH_MAX for tag in tags):
            raise DefinitionError(f"a guest gives at most {ASK_TAGS_MAX} tags, and short ones")
        return Request(
            definition=definition,
            mode="use",
            salt_of="",
            resources=event.resources,
            isolation_min="",
            tags=tags,
            batch="",
            priority=0,
            targets=(),
            replicas=0,
            expires_unix_ms=self._ctx.unix_ms + GUEST_EXPIRY_MS,
            issued_unix_ms=self._ctx.unix_ms,
            sponsor_of=self._ctx.me,
        )

    def _keep_few(self, service: str, name: str) -> None:
        self._handles.append((service, name))
        if len(self._handles) <= HANDLES_MAX:
            return
        old_service, old = self._handles.popleft()
        self._due.drop(old)
        for known in (self.jobs, self.over, self.given_by):
            known.pop(old, None)
        fold = self._core.folds.get(old_service)
        gone = fold.requests.pop(old, None) if fold is not None else None
        if fold is not None and gone is not None:
            fold.by_job[gone.job].remove(old)
            if gone.answer is not None and not fold.by_job[gone.job]:
                fold.results.pop(gone.answer, None)

    def _sponsors(self, job: GuestJob) -> list[str]:
        chain = self._core.membership.chains.get(job.service)
        if chain is None:
            return []
        return [p for p in sorted(self._ctx.connected) if "submit" in chain.now.roles_of(p)]

    def _ask(self, job: GuestJob) -> None:
        """Ask the next sponsor that has not refused; without one, wait for some to connect."""
        left = [p for p in self._sponsors(job) if p not in job.refusals]
        final = next((c for c in job.refusals.values() if c in _FINAL), "")
        if job.call is not None and (final or (job.refusals and not left)):
            self._fail(job)
            return
        job.sponsor = left[0] if left else ""
        wait_ms = ASK_ANSWER_MS
        if left:
            self._ctx.send(job.sponsor, job.ask)
        else:
            job.refusals.clear()  # of those there were; all are asked again
            wait_ms = ASK_GIVE_UP_MS if job.call is not None else ASK_RETRY_MS
            self._dial(job.service)
        self._due.set(job.state.id, self._ctx.now_ms + wait_ms)

    def _fail(self, job: GuestJob) -> None:
        """Nobody sponsors it: the submit fails, and nothing of it stays."""
        assert job.call is not None
        codes = dict.fromkeys(job.refusals.values())
        words = "; ".join(REFUSALS.get(code, "refused") for code in codes)
        petname = self._core.membership.petnames.get(job.service, job.service)
        message = f"no member of {petname!r} sponsors the job: {words or 'none is connected'}"
        hint = f"submit it again later; pairio service show {petname} shows what guests may have"
        self._ctx.emit(Fail(job.call, message, hint))
        job.call = None
        self._end(job, words)
        fold = self._core.fold(job.service)
        del fold.requests[job.state.id]
        fold.by_job[job.state.job].remove(job.state.id)

    def _end(self, job: GuestJob, why: str, tell: bool = False) -> None:
        """A job ends without a result."""
        self.jobs.pop(job.state.id, None)
        self._due.drop(job.state.id)
        self.over[job.state.id] = why
        job.state.canceled = True
        if tell and job.sponsor:
            self._ctx.send(job.sponsor, AskNoMore(job.service, job.ask.ask))
        if job.call is not None:
            self._ctx.emit(Fail(job.call, why, "submit it again"))
            job.call = None
        self._ctx.emit(JobChanged(job.service, job.state.job))

    def cancel(self, event: ev.CancelRequests) -> None:
        """Want jobs no more."""
        found = [self.jobs[name] for name in event.requests if name in self.jobs]
        for job in found:
            self._end(job, "canceled", tell=True)
        answer = {"service": event.service, "canceled": [job.state.id for job in found]}
        self._ctx.emit(Reply(event.call, answer))

    # -- what sponsors say ---------------------------------------------------------------

    def on_asked(self, peer: str, asked: Asked) -> None:
        """A sponsor answers: the one that was asked."""
        if not asked.ask:
            self._on_followed(peer, asked)
            return
        job = self.jobs.get(asked.ask)
        if job is None and asked.state == "over":
            return  # it was withdrawn here
        if job is None or job.service != asked.service or peer != job.sponsor:
            self._ctx.refuse(peer, "an answer to a job that it was not asked for")
            return
        match asked.state:
            case "waits":
                self._on_waits(job)
            case "done":
                self._on_done(peer, job, asked.document)
            case "over" if asked.code in ("canceled", "expired"):
                self._end(job, asked.code)
            case "over" | "refused":
                if asked.code in ("definition", "not_public"):
                    self._follow(peer, job.service)  # the list here may be an old one
                self._pass_over(job, asked.code if asked.code in REFUSALS else "refused")
            case _:
                self._ctx.refuse(peer, "an answer of a sponsor that is none")

    def _on_followed(self, peer: str, asked: Asked) -> None:
        if peer not in self._hearers(asked.service):
            self._ctx.refuse(peer, "an answer to a job that it was not asked for")
        elif asked.state == "refused" and not self.is_known(asked.service):
            self._on_not_shown(peer, asked.service, asked.code)

    def _on_not_shown(self, peer: str, service: str, code: str) -> None:
        """Whoever made the link says no, or all whom it names do: that is final."""
        if service not in self.services:
            return
        said = self._refusals.setdefault(service, {})
        said[peer] = code if code in REFUSALS else "not_public"
        of_link = [p.peer for p in self.services[service]]
        if peer == of_link[0] or all(p in said for p in of_link):
            self.refused[service] = said[peer]
            self._ctx.emit(WishChanged(service))

    def _on_waits(self, job: GuestJob) -> None:
        job.accepted = True
        self._due.set(job.state.id, self._ctx.now_ms + ASK_RETRY_MS)
        self._answer(job)
        self._ctx.emit(JobChanged(job.service, job.state.job))

    def _answer(self, job: GuestJob) -> None:
        if job.call is not None:
            answer = {"request": job.state.id, "job": job.state.job, "service": job.service}
            self._ctx.emit(Reply(job.call, answer))
            job.call = None

    def _on_done(self, peer: str, job: GuestJob, data: bytes) -> None:
        fold = self._core.fold(job.service)
        chain = self._core.membership.chains[job.service]
        try:
            document = ResultDocument.decode(data)
        except DecodeError:
            document = None
        is_right = (
            document is not None
            and (document.service, document.job) == (job.service, job.state.job)
            and "compute" in chain.now.roles_of(document.worker)
            and not fold.lacks_outputs(job.state.document, document)
        )
        if not is_right:
            self._ctx.refuse(peer, "a result that no worker of the service signed for the job")
            self._follow(peer, job.service)
            self._pass_over(job, "refused")
            return
        info = fold.take_document(data)
        job.state.answer = info.cid
        job.state.cached = job.call is not None
        self.given_by[job.state.id] = peer
        del self.jobs[job.state.id]
        self._due.drop(job.state.id)
        self._answer(job)
        self._ctx.emit(JobChanged(job.service, job.state.job))

    def _pass_over(self, job: GuestJob, code: str) -> None:
        job.refusals[job.sponsor] = code
        job.accepted = False
        self._ask(job)

    # -- peers and time ------------------------------------------------------------------

    def on_peer_up(self, peer: str) -> None:
        """Somebody is connected: hear the news, and ask for what nobody sponsors."""
        for service in self.services:
            if peer in self._hearers(service):
                self._follow(peer, service)
        for job in list(self.jobs.values()):
            if not job.sponsor and peer in self._sponsors(job):
                self._ask(job)

    def on_peer_down(self, peer: str) -> None:
        """A sponsor is gone: another one finds the result, or sees to it."""
        for job in list(self.jobs.values()):
            if job.sponsor == peer:
                self._pass_over(job, "gone")

    def tick(self) -> None:
        """Pass over who is silent; ask again; give up what expired."""
        for name in self._due.due(self._ctx.now_ms):
            job = self.jobs[name]
            if self._ctx.unix_ms > job.state.record.expires_unix_ms:
                self._end(job, "expired", tell=True)
            elif job.call is not None and self._ctx.now_ms - job.began_ms >= ASK_GIVE_UP_MS:
                self._fail(job)
            elif job.accepted:  # is it still there?
                job.accepted = False
                self._ctx.send(job.sponsor, job.ask)
                self._due.set(name, self._ctx.now_ms + ASK_ANSWER_MS)
            elif job.sponsor:
                self._pass_over(job, "silent")
            else:
                self._ask(job)

    def deadline_ms(self) -> int | None:
        """When something is due."""
        return self._due.next_ms()
