"""The bidder: other nodes' requests that nobody starts.

    unstarted for BID_DELAY_MS --rank--> bid to the coordinator, again every BID_INTERVAL_MS
        |                                   |
        |                                   +-- not connected: dial; not reached for
        |                                       TAKE_DELAY_MS + rank, synced since: take;
        |                                       it waits for inputs: want these, WANT_DELAY_MS later
        +-- started, answered, canceled, expired, gone: forgotten

The rank is by rendezvous(request, node): about three bids per job however many members. It is found
out only for what was not started at once, since that costs a hash for each member. To take is to be
coordinator and worker of the run oneself; nobody has to agree on who is alive.
"""

from dataclasses import dataclass

from pairio_protocol.apps import needs_of
from pairio_protocol.context import Context
from pairio_protocol.effects import Connect
from pairio_protocol.fold import RequestState, ServiceFold
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import (
    BID_DELAY_MS,
    BID_INTERVAL_MS,
    BID_RANK_MS,
    BID_SCAN_MS,
    BIDS_PER_SCAN,
    CONNECTIONS_MAX,
    RANK_MAX,
    TAKE_DELAY_MS,
    TAKE_RANK_MS,
    UNSTARTED_MAX,
    WANT_DELAY_MS,
)
from pairio_protocol.machines.deadlines import Deadlines
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.machines.owner import Owner
from pairio_protocol.messages import Bid, Presence
from pairio_protocol.policy import isolation_needed, misfit, needs_container

__all__ = ["Bidder", "Hooks"]


class Hooks:
    """What the bidder needs of its surroundings; given by the core."""

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        raise NotImplementedError

    def own_presence(self, service: str) -> Presence | None:
        """Return what this node says of itself."""
        raise NotImplementedError

    def addresses_of(self, service: str, peer: str) -> tuple[str, ...]:
        """Return where a member was last said to be."""
        raise NotImplementedError

    def is_idle(self) -> bool:
        """Say whether a slot is free here."""
        raise NotImplementedError

    def takes_guests(self) -> bool:
        """Say whether a stranger's run would begin here now."""
        raise NotImplementedError

    def synced_ms(self, service: str) -> int | None:
        """Return when a neighbour was last found to know nothing else; None without neighbours."""
        raise NotImplementedError

    def take(self, service: str, request: str) -> None:
        """Become the coordinator of somebody else's request."""
        raise NotImplementedError

    def want(self, service: str, jobs: tuple[str, ...], state: RequestState, in_vain: bool) -> None:
        """See to it that somebody wants the jobs on which a request waits; `in_vain` when it has
        waited long for those who seem to."""
        raise NotImplementedError


@dataclass
class _Seen:
    lost_since_ms: int | None = None
    ranked: bool = False
    want_ms: int = 0  # not before it is looked once more whether its inputs are wanted


class Bidder:
    """The requests of others that are not known to be started, oldest first."""

    def __init__(
        self, ctx: Context, membership: MembershipView, hooks: Hooks, owner: Owner
    ) -> None:
        self._ctx = ctx
        self._owner = owner
        self._membership = membership
        self._hooks = hooks
        self.seen: dict[tuple[str, str], _Seen] = {}
        self._due: Deadlines[tuple[str, str]] = Deadlines()
        self._scan_ms = 0
        #: (run, attempt, worker) -> when it was first looked at, and since when its worker is gone
        self._attempts: dict[tuple[str, str, str], tuple[int, int | None]] = {}

    def note(self, service: str, request: str) -> None:
        """Somebody else's request was accepted."""
        if not self._ctx.config.compute or len(self.seen) >= UNSTARTED_MAX:
            return
        if (service, request) not in self.seen:
            self.seen[service, request] = _Seen()
            self._due.set((service, request), self._ctx.now_ms + BID_DELAY_MS)

    def _before(self, service: str, request: str) -> tuple[int, int]:
        """Return how many members come before this one for a request, and how many there are."""
        mine = rendezvous(request, self._ctx.me)
        peers = self._membership.folded(service).peers()
        return sum(rendezvous(request, p) > mine for p in peers), len(peers)

    def _turn_ms(self, service: str, request: str) -> int:
        """Return how long to let others bid first. Only members that the coordinator is connected
        to can: of those before this one, as large a share as it can be connected to."""
        before, count = self._before(service, request)
        rank = before * min(count, CONNECTIONS_MAX) // max(1, count)
        return min(rank, RANK_MAX) * BID_RANK_MS

    def tick(self) -> None:
        """Bid, dial, take what is due."""
        if self._ctx.now_ms < self._scan_ms:
            return
        self._scan_ms = self._ctx.now_ms + BID_SCAN_MS
        idle = self._hooks.is_idle()
        bids: dict[tuple[str, str], list[str]] = {}
        for service, name in self._due.due(self._ctx.now_ms):
            seen = self.seen[service, name]
            state = self._open_state(service, name)
            if state is None:
                del self.seen[service, name]
                continue
            if not seen.ranked:
                seen.ranked = True
                if turn_ms := self._turn_ms(service, name):
                    self._due.set((service, name), self._ctx.now_ms + turn_ms)
                    continue
            self._due.set((service, name), self._ctx.now_ms + BID_INTERVAL_MS)
            if state.author in self._ctx.connected:
                seen.lost_since_ms = None
            elif seen.lost_since_ms is None:
                seen.lost_since_ms = self._ctx.now_ms
            is_free = self.is_free(service, state)
            if not idle or self._owner.closed(service) is not None:
                continue
            if not is_free:
                self._want_inputs(service, state, seen)
                continue
            if state.record.sponsor_of and not self._hooks.takes_guests():
                continue
            if seen.lost_since_ms is None:
                bids.setdefault((state.author, service), []).append(name)
            else:
                self._reach_or_take(service, state, seen)
        for (peer, service), names in sorted(bids.items()):
            self._ctx.send(peer, Bid(service, tuple(names[:BIDS_PER_SCAN])))

    def _open_state(self, service: str, name: str) -> RequestState | None:
        """Return the request while it wants something that this node might do one day."""
        chain = self._membership.active(service)
        state = self._hooks.fold(service).requests.get(name)
        if chain is None or state is None or "submit" not in chain.now.roles_of(state.author):
            return None
        if state.document["app"] not in chain.now.apps:  # it is looked at again with the list
            return None
        if not self._hooks.fold(service).is_wanted(state, self._ctx.unix_ms):
            return None
        if self._owner.refusal(service, state) is not None:
            return None
        return state if self._fits(service, state) else None

    def _fits(self, service: str, state: RequestState) -> bool:
        """Say whether this machine, if it computes, has what a request needs."""
        entry = self._hooks.own_presence(service)
        needed = isolation_needed(state.record, self._membership.folded(service))
        if entry is None or not entry.compute:
            return True
        folded, record = self._membership.folded(service), state.record
        if "container" not in self._ctx.config.executors and needs_container(
            folded, state.document
        ):
            return False
        network_for = state.document["app"] if needs_of(folded.apps, state.document).network else ""
        return misfit(entry, record.resources, needed, record.targets, network_for) is None

    def is_free(self, service: str, state: RequestState) -> bool:
        """Say whether the run can begin and no live attempt of it is known."""
        fold = self._hooks.fold(service)
        resolution = fold.resolve(state.job)
        run = fold.run_of(state, resolution)
        if run is None or resolution.lacks:
            return False
        return not any(
            self._is_alive((run, attempt, worker), state.record.resources.time_ms)
            for attempt, worker in fold.live_attempts(run)
        )

    def _is_alive(self, key: tuple[str, str, str], limit_ms: int) -> bool:
        """Say whether a started attempt may still be at work: within its time limit, and its
        worker connected or out of reach for less than a lease."""
        first_ms, gone_ms = self._attempts.get(key, (self._ctx.now_ms, None))
        here = key[2] in self._ctx.connected or key[2] == self._ctx.me
        gone_ms = None if here else (gone_ms if gone_ms is not None else self._ctx.now_ms)
        self._attempts[key] = (first_ms, gone_ms)
        if len(self._attempts) > UNSTARTED_MAX:
            del self._attempts[next(iter(self._attempts))]
        lease_ms = self._ctx.config.lease_ms
        silent = gone_ms is not None and self._ctx.now_ms - gone_ms >= lease_ms
        return not silent and self._ctx.now_ms - first_ms < limit_ms + lease_ms

    def _reach_or_take(self, service: str, state: RequestState, seen: _Seen) -> None:
        assert seen.lost_since_ms is not None
        addresses = self._hooks.addresses_of(service, state.author)
        if addresses:
            self._ctx.emit(Connect(state.author, addresses))
        if needs_of(self._membership.folded(service).apps, state.document).secrets:
            return  # nobody but its submitter can give them
        if self._is_left(service, state, seen.lost_since_ms, TAKE_DELAY_MS):
            self._ctx.counters["runs taken"] += 1
            self._hooks.take(service, state.id)

    def _is_left(self, service: str, state: RequestState, since_ms: int, delay_ms: int) -> bool:
        """Say whether a coordinator was out of reach for `delay_ms` and this node's turn, and what
        others know was heard since."""
        waited_ms = self._ctx.now_ms - since_ms
        if waited_ms < delay_ms:
            return False
        rank = min(self._before(service, state.id)[0], RANK_MAX)
        synced_ms = self._hooks.synced_ms(service)
        synced = synced_ms is None or synced_ms > since_ms
        return waited_ms >= delay_ms + rank * TAKE_RANK_MS and synced

    def _want_inputs(self, service: str, state: RequestState, seen: _Seen) -> None:
        """Who waits for a job that looks open here, and that its own submitter holds for answered,
        asks for it himself; for who is gone a member does, of those that could run it at once. (A
        stranger asks again.)"""
        since_ms, now_ms = seen.lost_since_ms, self._ctx.now_ms
        if since_ms is None or state.record.sponsor_of or now_ms < seen.want_ms:
            return
        folded, fold = self._membership.folded(service), self._hooks.fold(service)
        resolution = fold.resolve(state.job)
        waits_for = resolution.waits_for or resolution.lacks
        if not waits_for or "submit" not in folded.roles_of(self._ctx.me):
            return
        if self._is_left(service, state, since_ms, TAKE_DELAY_MS + WANT_DELAY_MS):
            seen.want_ms = now_ms + WANT_DELAY_MS
            last = {job: fold.by_job.get(job, ())[-1:] for job in waits_for}
            jobs = [j for j in last if all(self._fits(service, fold.requests[r]) for r in last[j])]
            self._hooks.want(service, tuple(jobs), state, in_vain=True)

    def on_wake(self) -> None:
        """The machine slept: whom it did not reach meanwhile is not for that reason gone."""
        for seen in self.seen.values():
            seen.lost_since_ms = None

    def deadline_ms(self) -> int | None:
        """When something is due."""
        due_ms = self._due.next_ms()
        return None if due_ms is None else max(self._scan_ms, due_ms)
