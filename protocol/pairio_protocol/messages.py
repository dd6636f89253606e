"""Messages: what nodes say to each other and nobody stores (DESIGN section 6).

One docstring each: who sends it, when, and what follows. `MESSAGES` encodes and decodes them.
`SYNC_KINDS` travel on the sync channel, everything else on control.
"""

from dataclasses import dataclass
from functools import lru_cache

from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    ASK_DEFINITION_SIZE_BYTES_MAX,
    ASK_TAGS_MAX,
    DECODED_MAX,
    NAME_LENGTH_MAX,
    PERMILLE_MAX,
    PRESENCE_SIZE_BYTES_MAX,
    SIGNATURE_SIZE_BYTES,
)
from pairio_protocol.records import Resources
from pairio_protocol.signing import SigningKey, sha256, signing_input, verify
from pairio_protocol.wire import Registry

__all__ = [
    "MESSAGES",
    "SYNC_KINDS",
    "Ack",
    "Ask",
    "AskNoMore",
    "Asked",
    "Award",
    "Beat",
    "Bid",
    "CancelNow",
    "Changes",
    "Decline",
    "Digest",
    "Follow",
    "Forks",
    "Frontier",
    "Have",
    "Held",
    "Hello",
    "HelloService",
    "Hold",
    "Kept",
    "LogHeight",
    "LookedUp",
    "Lookup",
    "Message",
    "Presence",
    "PresenceUpdate",
    "Proposal",
    "Push",
    "Renew",
    "Renewed",
    "SyncSegments",
    "WantChanges",
    "Where",
    "WishAnswer",
    "WishMessage",
]

MESSAGES = Registry()


@dataclass(frozen=True, slots=True)
class HelloService:
    """One service in a hello: its id, the newest change's seq and CID, and a hash over the set of
    all changes that the sender knows, losing branches included."""

    service: str
    epoch: int
    head: str
    digest: bytes


@MESSAGES.wire("hello")
@dataclass(frozen=True, slots=True)
class Hello:
    """First on a new connection, and again when a service changes. Names only services of which
    the receiver is a member, or was. A receiver that is behind answers `want_changes`."""

    boot: bytes
    services: tuple[HelloService, ...]


@MESSAGES.wire("want_changes")
@dataclass(frozen=True, slots=True)
class WantChanges:
    """Asks for the changes of a service behind (seq `start`, CID `after`), of all branches;
    answered with `changes`."""

    service: str
    start: int
    after: str


@MESSAGES.wire("changes")
@dataclass(frozen=True, slots=True)
class Changes:
    """Signed changes by (seq, CID). Sent on request, and to connected members when one is made.
    With `more` the receiver asks on behind the last one."""

    service: str
    changes: tuple[bytes, ...]
    more: bool


@MESSAGES.wire("proposal")
@dataclass(frozen=True, slots=True)
class Proposal:
    """A change that too few admins have signed, from one who may sign it to another: when it is
    made or gets a signature, and after a hello that shows the same changes. A receiver that holds
    further signatures sends it back with them."""

    service: str
    change: bytes


@MESSAGES.wire("presence")
@dataclass(frozen=True, slots=True)
class PresenceUpdate:
    """Signed presence entries, the sender's own and others', newest of each only."""

    entries: tuple[bytes, ...]


@MESSAGES.wire("push")
@dataclass(frozen=True, slots=True)
class Push:
    """A segment for one peer: what an award or a result rests on, or a request to be stored.
    With `ack` the receiver answers `ack` once it is committed."""

    segment: bytes
    ack: bool


@MESSAGES.wire("kept")
@dataclass(frozen=True, slots=True)
class Kept:
    """A segment of a log that the sender holds no more as a whole: an answer to `lookup`."""

    segment: bytes


@MESSAGES.wire("ack")
@dataclass(frozen=True, slots=True)
class Ack:
    """The segments with these hashes are committed at the sender."""

    hashes: tuple[bytes, ...]


@MESSAGES.wire("award")
@dataclass(frozen=True, slots=True)
class Award:
    """A coordinator offers a run to one worker. Answered with `have` or `decline`."""

    service: str
    request: str
    run: str
    attempt: str
    upstream: tuple[str, ...]
    lease_ms: int


@MESSAGES.wire("have")
@dataclass(frozen=True, slots=True)
class Have:
    """A worker holds the run: queued, executing, or done (then the result was pushed before)."""

    service: str
    run: str
    attempt: str
    state: str


@MESSAGES.wire("decline")
@dataclass(frozen=True, slots=True)
class Decline:
    """A worker does not take an award: the rule, what is needed, what it has."""

    service: str
    run: str
    attempt: str
    reason: str
    needs: str
    has: str


@MESSAGES.wire("bid")
@dataclass(frozen=True, slots=True)
class Bid:
    """A free worker asks the coordinator of runs that nobody started for an award."""

    service: str
    requests: tuple[str, ...]


@MESSAGES.wire("beat")
@dataclass(frozen=True, slots=True)
class Beat:
    """A worker renews the leases of its attempts, every third of the lease. `permille` says how far
    each of them is by its own word, in thousandths, 0 for one that does not say; none says: left
    out."""

    service: str
    attempts: tuple[str, ...]
    permille: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not all(0 <= figure <= PERMILLE_MAX for figure in self.permille or ()):
            raise ValueError("progress is 0 to 1000 thousandths")


@MESSAGES.wire("renew")
@dataclass(frozen=True, slots=True)
class Renew:
    """A worker renews the lease of an exclusive attempt, in place of a beat: first when it takes
    the award, then every third of the lease. `number` counts up. Answered with `renewed`, if it is
    renewed; the attempt does not begin before, and is ended when no answer comes in time.
    `permille` as in `beat`."""

    service: str
    attempt: str
    number: int
    permille: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.permille <= PERMILLE_MAX:
            raise ValueError("progress is 0 to 1000 thousandths")


@MESSAGES.wire("renewed")
@dataclass(frozen=True, slots=True)
class Renewed:
    """The coordinator waits at least `lease_ms` longer for the attempt, from when it got the
    `renew` with this number; the worker counts from when it sent it."""

    service: str
    attempt: str
    number: int
    lease_ms: int


@MESSAGES.wire("cancel_now")
@dataclass(frozen=True, slots=True)
class CancelNow:
    """A coordinator no longer wants an attempt; the worker kills it."""

    service: str
    attempt: str


@MESSAGES.wire("hold")
@dataclass(frozen=True, slots=True)
class Hold:
    """Asks a member to keep copies of the content below these CIDs, to be had from `holders`, and
    of the segment with this hash (empty: none), which was pushed before. Answered with `held`."""

    service: str
    ticket: str
    cids: tuple[str, ...]
    holders: tuple[str, ...]
    segment: bytes


@MESSAGES.wire("where")
@dataclass(frozen=True, slots=True)
class Where:
    """Asks a member whether the content below these CIDs is on its disk, whole; nothing is fetched
    for it. Answered with `held`."""

    service: str
    ticket: str
    cids: tuple[str, ...]


@MESSAGES.wire("held")
@dataclass(frozen=True, slots=True)
class Held:
    """Content and segment of a `hold`, or the content of a `where`, are on the sender's disk
    (`ok`), or are not."""

    ticket: str
    ok: bool


@MESSAGES.wire("lookup")
@dataclass(frozen=True, slots=True)
class Lookup:
    """Asks a member for results of these jobs before they are computed. It pushes the segments of
    those it has, then answers `looked_up`. A result may be named in place of a job, by its CID:
    then its request is pushed too."""

    service: str
    ticket: int
    jobs: tuple[str, ...]


@MESSAGES.wire("looked_up")
@dataclass(frozen=True, slots=True)
class LookedUp:
    """All results that the sender has for a `lookup` were pushed before this."""

    service: str
    ticket: int


@MESSAGES.wire("digest")
@dataclass(frozen=True, slots=True)
class Digest:
    """Hashes over the heights of all logs of a service, maybe of ranges of them too, and over its
    changes. A receiver with other changes says hello first; with other heights it sends frontiers
    of the ranges that differ, or its own digest with ranges if there were none."""

    service: str
    digest: bytes
    changes: bytes


@dataclass(frozen=True, slots=True)
class LogHeight:
    """How far a log is accepted: the number of records from its beginning without a gap.
    `forked` is 1 + the lowest forked seq, 0 for a log without a fork."""

    author: str
    boot: bytes
    shard: int
    height: int
    forked: int


@MESSAGES.wire("frontier")
@dataclass(frozen=True, slots=True)
class Frontier:
    """Heights of the logs from key `low` (inclusive) to `high` (exclusive, empty = no end).
    The receiver sends what lies above them and, unless `reply`, its own frontier if it lacks
    something."""

    service: str
    low: bytes
    high: bytes
    logs: tuple[LogHeight, ...]
    reply: bool


@MESSAGES.wire("segments")
@dataclass(frozen=True, slots=True)
class SyncSegments:
    """Segments in the order of their logs; `more` when the bound of one answer was reached."""

    service: str
    segments: tuple[bytes, ...]
    more: bool


@MESSAGES.wire("forks")
@dataclass(frozen=True, slots=True)
class Forks:
    """Proof of forked logs: two segments each that their author signed and that cannot both
    follow one log. Sent to whoever knows of no fork, or of a higher one."""

    service: str
    pairs: tuple[tuple[bytes, ...], ...]


@MESSAGES.wire("wish")
@dataclass(frozen=True, slots=True)
class WishMessage:
    """A signed wish, from the peer who has it or passed on by a member. Answered with
    `wish_answer`, also when it was answered before."""

    wish: bytes


@MESSAGES.wire("wish_answer")
@dataclass(frozen=True, slots=True)
class WishAnswer:
    """What became of the wish with this sha2-256: `waits`, `granted` or `refused`, and a code that
    says why. A member who passed the wish on passes the answer back."""

    service: str
    wish: bytes
    state: str
    code: str


@MESSAGES.wire("follow")
@dataclass(frozen=True, slots=True)
class Follow:
    """A stranger wants to be a guest of a public service: the changes behind (seq `start`, CID
    `after`). Answered with `changes`, if there are any, and with `asked` without an id: `waits`, or
    `refused` when the service is not public (or not here: the answer is the same)."""

    service: str
    start: int
    after: str


@MESSAGES.wire("ask")
@dataclass(frozen=True, slots=True)
class Ask:
    """A guest asks a member who may submit to have a job done in its name. Answered with `asked`,
    also when it was asked before; again when it is done."""

    service: str
    ask: str
    definition: bytes
    resources: Resources
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no sponsor looks at (ValueError)."""
        if len(self.ask) > NAME_LENGTH_MAX or len(self.service) > NAME_LENGTH_MAX:
            raise ValueError("a name that is too long")
        if len(self.definition) > ASK_DEFINITION_SIZE_BYTES_MAX:
            raise ValueError("definition too large")
        if len(self.tags) > ASK_TAGS_MAX or any(len(tag) > NAME_LENGTH_MAX for tag in self.tags):
            raise ValueError("too many tags, or one that is too long")


@MESSAGES.wire("ask_no_more")
@dataclass(frozen=True, slots=True)
class AskNoMore:
    """A guest does not want a job any more that it asked for."""

    service: str
    ask: str


@MESSAGES.wire("asked")
@dataclass(frozen=True, slots=True)
class Asked:
    """What became of an `ask`: `waits`, `done` with the signed result document, `refused` or `over`
    with a code that says why. After `done` the sponsor gives this guest the blocks of the result's
    outputs and console."""

    service: str
    ask: str
    state: str
    code: str
    document: bytes


SYNC_KINDS = (Digest, Forks, Frontier, SyncSegments)

Message = (
    Ack
    | Ask
    | AskNoMore
    | Asked
    | Award
    | Beat
    | Bid
    | CancelNow
    | Changes
    | Decline
    | Digest
    | Follow
    | Forks
    | Frontier
    | Have
    | Held
    | Hello
    | Hold
    | Kept
    | LookedUp
    | Lookup
    | PresenceUpdate
    | Proposal
    | Push
    | Renew
    | Renewed
    | SyncSegments
    | WantChanges
    | Where
    | WishAnswer
    | WishMessage
)

_PRESENCE = Registry()


@_PRESENCE.wire("presence")
@dataclass(frozen=True, slots=True)
class Presence:
    """Who is alive and what they have: the standing bid. Last (boot start, counter) wins.
    `networks` are apps that may have the machine's network here, "*": all; left out when none."""

    service: str
    peer: str
    boot: bytes
    started_unix_ms: int
    counter: int
    compute: bool
    cpu_millicores: int
    memory_mib: int
    gpus: int
    slots: int
    load: int
    isolation: str
    addresses: tuple[str, ...]
    networks: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, int]:
        """Newer entries of a peer compare higher."""
        return (self.started_unix_ms, self.counter)

    def sign(self, key: SigningKey) -> bytes:
        """Return the entry as it travels."""
        body = _PRESENCE.encode(self)
        return pack([body, key.sign(signing_input("presence", self.service, sha256(body)))])

    @staticmethod
    @lru_cache(maxsize=DECODED_MAX)
    def decode(data: bytes) -> "Presence":
        """Return a signed entry; DecodeError when its peer did not sign it."""
        if len(data) > PRESENCE_SIZE_BYTES_MAX:
            raise DecodeError(f"presence of more than {PRESENCE_SIZE_BYTES_MAX} bytes")
        match unpack(data):
            case [bytes(body), bytes(signature)] if len(signature) == SIGNATURE_SIZE_BYTES:
                entry: Presence = _PRESENCE.decode(body)
                if len(entry.service) > NAME_LENGTH_MAX:
                    raise DecodeError("presence in a service that is none")
                message = signing_input("presence", entry.service, sha256(body))
                if not verify(entry.peer, message, signature):
                    raise DecodeError("presence that its peer did not sign")
                return entry
        raise DecodeError("not a presence entry")
