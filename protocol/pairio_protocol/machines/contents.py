"""Contents: is what a result gave still to be had?

    looked for here --yes--> had
        |no
    connected members are asked --one holds it--> had
        |none does
    doubted --asked again every LOOK_AGAIN_MS, and when a member connects; one holds it--> had
        |for LOST_PATIENCE_MS, or every member said no
    lost: a request names the result and is computed again --found after all--> withdrawn
                                        |answered, or withdrawn by somebody
                                    forgotten

It begins when a result is about to answer a request that it was not computed for just now, when it
cannot be copied though it was an answer, when a run that rests on it was lost, and when somebody
here wants its content and nobody gave it. Nothing is looked for in ordinary running. Clock:
WHERE_MS for an answer; LOST_PATIENCE_MS, since a holder may only sleep.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from pairio_protocol.context import Context
from pairio_protocol.effects import JobChanged, Locate
from pairio_protocol.events import Submit
from pairio_protocol.fold import ResultInfo
from pairio_protocol.limits import (
    FILES_PER_JOB_MAX,
    HOLDS_SERVED_MAX,
    LOOK_AGAIN_MS,
    LOOKS_MAX,
    LOST_PATIENCE_MS,
    NAME_LENGTH_MAX,
    WHERE_MS,
)
from pairio_protocol.machines.deadlines import Deadlines
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import Held, Where

__all__ = ["LOOK", "Contents", "Hooks", "outputs_of"]

#: Tickets of what is looked for for this node itself begin so.
LOOK = "look:"


class Hooks:
    """What it needs of its surroundings; given by the core."""

    def on_found(
        self, service: str, result: ResultInfo, waiting: list[Submit], bring: bool
    ) -> None:
        """The content is to be had: who waited for it goes on; `bring` it here, too."""
        raise NotImplementedError

    def on_doubted(self, waiting: list[Submit]) -> None:
        """Nobody holds the content now: submits go on as if there were no result."""
        raise NotImplementedError

    def compute_again(self, service: str, result: ResultInfo) -> str | None:
        """Say that the content is lost, and ask for its job; return the request's id, empty when
        it is said already or not for this node to say, None when its job is not known here yet."""
        raise NotImplementedError

    def is_under_way(self, service: str, request: str) -> bool:
        """Say whether a request of this node still waits for its result."""
        raise NotImplementedError

    def withdraw(self, service: str, request: str) -> None:
        """Cancel a request of this node."""
        raise NotImplementedError


@dataclass
class _Look:
    """One result whose content is looked for. `denied` are members who said no in this round."""

    service: str
    result: ResultInfo
    cids: tuple[str, ...]
    began_ms: int
    state: str = "here"  # here | asking | doubted | lost
    asked: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    waiting: list[Submit] = field(default_factory=list)
    request: str = ""
    bring: bool = False  # somebody could not get it, who reaches this node


class Contents:
    """The results whose content is in question, by CID; and what members ask this node for."""

    def __init__(self, ctx: Context, membership: MembershipView, hooks: Hooks) -> None:
        self._ctx = ctx
        self._membership = membership
        self._hooks = hooks
        self._looks: dict[str, _Look] = {}
        self._due: Deadlines[str] = Deadlines()
        self._serving: dict[str, str] = {}  # ticket of a look on this disk -> for whom
        self._sure: set[str] = set()  # found just now
        #: result -> who said to hold its content; and who did, and yet nobody gave it
        self._claims: OrderedDict[str, set[str]] = OrderedDict()
        self._disbelieved: OrderedDict[str, set[str]] = OrderedDict()

    # -- for this node ----------------------------------------------------------------------

    def is_there(self, service: str, result: ResultInfo, event: Submit | None = None) -> bool:
        """Say whether a result's content is to be had, as far as it was found out just now; else
        it is looked for, and `event` or whoever is reviewed goes on then."""
        cids = outputs_of(result)
        if not cids or result.cid in self._sure:
            return True
        look = self._looks.get(result.cid)
        if look is None:
            if len(self._looks) >= LOOKS_MAX:
                self._ctx.counters["results answered unlooked"] += 1
                return True
            self._begin(service, result, cids)
            look = self._looks[result.cid]
        if event is not None:
            look.waiting.append(event)
        return False

    def doubt(self, service: str, result: ResultInfo) -> None:
        """Somebody could not get a result's content: find out whether anybody has it."""
        if not self.is_there(service, result) and result.cid in self._looks:
            self._looks[result.cid].bring = True

    def is_doubted(self, cid: str) -> bool:
        """Say whether nobody was found who holds a result's content."""
        look = self._looks.get(cid)
        return look is not None and look.state in ("doubted", "lost")

    def is_in_question(self, cids: tuple[str, ...]) -> bool:
        """Say whether the content of one of these results is being looked for."""
        return bool(self._looks) and any(cid in self._looks for cid in cids)

    def _begin(self, service: str, result: ResultInfo, cids: tuple[str, ...]) -> None:
        look = _Look(service, result, cids, self._ctx.now_ms)
        self._looks[result.cid] = look
        self._ctx.counters["results whose content was looked for"] += 1
        self._look_here(look)

    def _look_here(self, look: _Look) -> None:
        look.asked, look.denied = set(), set()
        self._due.set(look.result.cid, self._ctx.now_ms + LOOK_AGAIN_MS)
        self._ctx.emit(Locate(look.service, f"{LOOK}{look.result.cid}", look.cids))

    def _ask(self, look: _Look) -> None:
        """Ask all connected members; nothing is fetched by it."""
        look.asked = set(self._membership.connected_members(look.service))
        ticket = f"{LOOK}{look.result.cid}"
        for peer in sorted(look.asked):
            self._ctx.send(peer, Where(look.service, ticket, look.cids))
        if look.state == "here":
            look.state = "asking"
            self._due.set(look.result.cid, self._ctx.now_ms + WHERE_MS)
        self._consider(look)

    def on_held(self, peer: str, message: Held) -> bool:
        """A member says whether it holds the content; False when it was not asked for that."""
        look = self._looks.get(message.ticket.removeprefix(LOOK))
        if not message.ticket.startswith(LOOK):
            return False
        if look is None or peer not in look.asked:
            return True
        if message.ok:
            if peer not in self._disbelieved.get(look.result.cid, ()):
                _note(self._claims, look.result.cid, {peer})
                self._found(look)
        else:
            look.denied.add(peer)
            self._consider(look)
        return True

    def disbelieve(self, cid: str) -> None:
        """Nobody gave a result's content: who said that he holds it is not believed once more."""
        claimed = self._claims.pop(cid, set()) & set(self._ctx.connected)
        if claimed:
            _note(self._disbelieved, cid, claimed)

    def _consider(self, look: _Look) -> None:
        """Once all who were asked have said no: doubt; if these were all members, it is lost."""
        if look.asked - look.denied - (look.asked - set(self._ctx.connected)):
            return
        if look.state in ("here", "asking"):
            self._doubt(look)
        everybody = set(self._membership.folded(look.service).peers()) - {self._ctx.me}
        if everybody <= look.denied:
            self._lose(look)

    def _doubt(self, look: _Look) -> None:
        look.state = "doubted"
        self._ctx.counters["results that nobody held for now"] += 1
        self._due.set(look.result.cid, self._ctx.now_ms + LOOK_AGAIN_MS)
        self._ctx.emit(JobChanged(look.service, look.result.document.job))
        waiting, look.waiting = look.waiting, []
        self._hooks.on_doubted(waiting)

    def _lose(self, look: _Look) -> None:
        if look.state == "lost":
            return
        request = self._hooks.compute_again(look.service, look.result)
        if request is None and self._ctx.now_ms - look.began_ms < 2 * LOST_PATIENCE_MS:
            return  # asked again with the next round
        self._ctx.counters["results whose content was lost"] += 1
        look.state, look.request = "lost", request or ""
        if not request:
            self._forget(look)

    def _found(self, look: _Look) -> None:
        self._forget(look)
        if look.request and self._hooks.is_under_way(look.service, look.request):
            self._hooks.withdraw(look.service, look.request)
        self._sure.add(look.result.cid)
        self._hooks.on_found(look.service, look.result, look.waiting, look.bring)
        self._sure.discard(look.result.cid)

    def _forget(self, look: _Look) -> None:
        del self._looks[look.result.cid]
        self._due.drop(look.result.cid)

    # -- for members ------------------------------------------------------------------------

    def on_where(self, peer: str, message: Where) -> None:
        """A member asks whether this node holds some content, whole."""
        if len(message.ticket) > NAME_LENGTH_MAX:
            self._ctx.refuse(peer, "a where with a long name")
            return
        ticket = f"{peer}|{message.ticket}"
        if ticket in self._serving:
            return  # it is being looked at, and answered then
        mine = sum(asked_by == peer for asked_by in self._serving.values())
        if len(self._serving) >= HOLDS_SERVED_MAX or mine >= HOLDS_SERVED_MAX // 2:
            self._ctx.counters["looks beyond what is served at once"] += 1
            return  # no answer is no denial
        self._serving[ticket] = peer
        self._ctx.emit(Locate(message.service, ticket, message.cids[: FILES_PER_JOB_MAX + 1]))

    def on_located(self, ticket: str, here: bool) -> None:
        """This node's disk was looked through: for itself, or for a member."""
        peer = self._serving.pop(ticket, None)
        if peer is not None:
            self._ctx.send(peer, Held(ticket.partition("|")[2], here))
            return
        look = self._looks.get(ticket.removeprefix(LOOK))
        if look is not None:
            self._found(look) if here else self._ask(look)

    def on_peer_up(self) -> None:
        """Somebody new may hold what nobody did."""
        for cid, look in self._looks.items():
            if look.state in ("doubted", "lost"):
                self._due.set(cid, self._ctx.now_ms)

    def on_peer_down(self, peer: str) -> None:
        """Nobody waits there for an answer any more, nor here for his."""
        self._serving = {ticket: p for ticket, p in self._serving.items() if p != peer}
        for look in list(self._looks.values()):
            if look.state == "asking" and look.result.cid in self._looks:
                self._consider(look)

    # -- time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Go on without who does not answer; ask again; lose patience."""
        for cid in self._due.due(self._ctx.now_ms):
            look = self._looks[cid]
            if look.state == "lost" and not self._hooks.is_under_way(look.service, look.request):
                self._forget(look)
                continue
            if look.state == "asking":
                self._doubt(look)
                continue
            if look.state == "doubted" and self._ctx.now_ms - look.began_ms >= LOST_PATIENCE_MS:
                self._lose(look)
            if cid in self._looks:
                self._look_here(look)

    def deadline_ms(self) -> int | None:
        """When something is due."""
        return self._due.next_ms()


def _note(known: OrderedDict[str, set[str]], cid: str, peers: set[str]) -> None:
    known.setdefault(cid, set()).update(peers)
    if len(known) > LOOKS_MAX:
        known.popitem(last=False)


def outputs_of(result: ResultInfo) -> tuple[str, ...]:
    """Return the content that makes a result worth having: of a failed one there is none."""
    if result.document.status != "completed":
        return ()
    return tuple(dict.fromkeys(cid for cid, _, _ in result.document.outputs.values()))
