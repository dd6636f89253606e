"""What a coordinator keeps of wishes and runs, and what it needs of its surroundings."""

from dataclasses import dataclass, field

from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.messages import Award, CancelNow, Decline, Presence
from pairio_protocol.records import Record

__all__ = ["Attempt", "Errand", "Hooks", "Wish"]


@dataclass
class Attempt:
    """One try of a run on one node. `deadline_ms` is the answer's or the lease's; past `end_ms`
    no beat renews it: `span_ms` (the run's time limit and a lease) after it was last known not to
    have begun. `request` is the one whose resources the award named."""

    id: str
    worker: str
    request: str
    deadline_ms: int
    end_ms: int
    span_ms: int
    held: bool = False
    state: str = "awarded"
    for_guests: bool = False
    permille: int = 0  # how far it is, as its worker says

    def note_waiting(self, now_ms: int) -> None:
        """The worker has just been heard of: what waits there for its turn uses up no time."""
        if self.state in ("awarded", "queued"):
            self.end_ms = now_ms + self.span_ms


@dataclass
class Wish:
    """An unanswered request that this node sees to."""

    service: str
    request: str
    taken: bool = False
    run: str | None = None
    resolved: str | None = None
    upstream: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    blocked_by: str | None = None
    exhausted: bool = False
    #: its answer was not made for it: whether the content is there is looked at first
    careful: bool = False
    held_back: bool = False
    waiting_since_ms: int = 0


@dataclass
class Errand:
    """One run that wishes want, and how far it is. Decline times are by peer."""

    service: str
    run: str
    wishes: dict[str, None] = field(default_factory=dict)
    attempt: Attempt | None = None
    for_guests: bool = False
    failed_on: set[str] = field(default_factory=set)
    #: how many attempts were lost, and until when nodes that lost one are not asked once more
    losses: int = 0
    rest_until_ms: int = 0
    declined: dict[str, tuple[int, Decline]] = field(default_factory=dict)


class Hooks:
    """What the coordinator needs of its surroundings; given by the core."""

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        raise NotImplementedError

    def append(self, service: str, record: Record) -> tuple[bytes, int]:
        """Add a record to this node's log; return its (boot, seq)."""
        raise NotImplementedError

    def want(self, service: str, jobs: tuple[str, ...], state: RequestState, in_vain: bool) -> None:
        """See to it that somebody wants the jobs on which a request waits; `in_vain` when it has
        waited long for those who seem to."""
        raise NotImplementedError

    def is_there(self, service: str, result: ResultInfo) -> bool:
        """Say whether a result's content is to be had; else it is looked for."""
        raise NotImplementedError

    def doubt(self, service: str, cid: str) -> None:
        """A run that rests on a result was lost: is its content still to be had?"""
        raise NotImplementedError

    def is_in_question(self, results: tuple[str, ...]) -> bool:
        """Say whether the content of one of these results is being looked for."""
        raise NotImplementedError

    def presence_here(self, service: str) -> list[Presence]:
        """Return the presence entries of this node and of connected members."""
        raise NotImplementedError

    def push(self, peer: str, segment: bytes) -> None:
        """Make sure that a peer has a segment."""
        raise NotImplementedError

    def is_twins(self, state: RequestState) -> bool:
        """Say whether a request of this key is another live node's."""
        raise NotImplementedError

    def twin_wants(self, service: str, run: str) -> bool:
        """Say whether another live node of this key wants a run."""
        raise NotImplementedError

    def is_twins_attempt(self, attempt: str) -> bool:
        """Say whether another live node of this key gave out an attempt."""
        raise NotImplementedError

    def deliver(self, peer: str, award: Award) -> None:
        """Send an award, to this node itself if it is the one."""
        raise NotImplementedError

    def cancel_now(self, peer: str, message: CancelNow) -> None:
        """Tell a worker, which may be this node itself, that an attempt is not wanted."""
        raise NotImplementedError

    def answered(self, state: RequestState, result: ResultInfo, service: str) -> None:
        """A request of this node has its answer."""
        raise NotImplementedError
