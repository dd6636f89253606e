"""Effects: everything a core can ask of the shell. The closed union is `Effect`.

All are carried out at once, in order; what must wait for the disk is kept back by the core itself
until `Committed` (see `core.NodeCore.seal`).
"""

from dataclasses import dataclass
from typing import Any

from pairio_protocol.records import Resources
from pairio_protocol.segment import Segment

__all__ = [
    "Announce",
    "Commit",
    "Connect",
    "Dropped",
    "Effect",
    "Execute",
    "Fail",
    "FetchBlocks",
    "GuestReads",
    "JobChanged",
    "JoinTopic",
    "Kill",
    "LeaveTopic",
    "Locate",
    "LookFurther",
    "Refuse",
    "Reply",
    "Send",
    "TwinSeen",
    "WishChanged",
]


@dataclass(frozen=True)
class Send:
    """Queue a frame for a connected peer; a full queue drops it (sync and timers make it good)."""

    peer: str
    channel: str  # control | sync
    data: bytes


@dataclass(frozen=True)
class Announce:
    """Publish a segment in the service's topic."""

    service: str
    data: bytes


@dataclass(frozen=True)
class Connect:
    """Keep a connection to a member, at one of these addresses."""

    peer: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class JoinTopic:
    """Take part in the gossip of a service."""

    service: str


@dataclass(frozen=True)
class LeaveTopic:
    """Take no part in the gossip of a service any more."""

    service: str


@dataclass(frozen=True)
class WishChanged:
    """Something that clients see of a wish to join or leave has changed."""

    service: str


@dataclass(frozen=True)
class Execute:
    """Fetch code and inputs from `holders`, run, store outputs, answer `Executed`.

    `request`, `upstream`, `coordinators`, `lease_ms` and `started_unix_ms` are for `Adopted`,
    should the run outlive this node.
    """

    service: str
    attempt: str
    request: str
    run: str
    upstream: tuple[str, ...]
    coordinators: tuple[str, ...]
    lease_ms: int
    started_unix_ms: int
    job: str
    document: dict[str, Any]  # the resolved job
    processor: dict[str, Any]
    bundle: str
    resources: Resources
    isolation_min: str
    holders: tuple[str, ...]
    for_guest: bool = False  # a stranger asked: what the owner allows members is not for it


@dataclass(frozen=True)
class GuestReads:
    """A stranger may read the blocks below `cids`: outputs and console of a result that it asked
    for, in a public service."""

    peer: str
    service: str
    cids: tuple[str, ...]


@dataclass(frozen=True)
class Kill:
    """End an attempt that is queued or runs here."""

    attempt: str
    reason: str


@dataclass(frozen=True)
class FetchBlocks:
    """Get the content below `cids` from `holders` to this node's disk; answer `Fetched`."""

    service: str
    ticket: str
    cids: tuple[str, ...]
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Locate:
    """Find out whether the content below `cids` is on this node's disk, whole; fetch nothing.
    Answer `Located`."""

    service: str
    ticket: str
    cids: tuple[str, ...]


@dataclass(frozen=True)
class LookFurther:
    """No connected member has a result of the job that a submit asks for, and not all are connected
    that would: look it up in the DHT. Answer `LookedFurther`, always."""

    call: int
    service: str
    job: str


@dataclass(frozen=True)
class Reply:
    """The answer to a local call."""

    call: int
    value: dict[str, Any]


@dataclass(frozen=True)
class Fail:
    """A local call cannot be done: what, and what to do. `code` is for programs."""

    call: int
    message: str
    hint: str | None = None
    code: str = "invalid"


@dataclass(frozen=True)
class JobChanged:
    """Something that clients see of a job has changed."""

    service: str
    job: str


@dataclass(frozen=True)
class Refuse:
    """A peer's wrong move: counted, shown, otherwise without effect."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Dropped:
    """A log that is over: its segments go, but for those with the hashes in `kept`; that it was
    here, how high, from where on forked (seq + 1, or 0), is remembered. `kept` None: the segments
    went before, it is only higher than was known. Rows of a commit that failed are written after
    those of later ones: the highest height counts, whatever the order."""

    service: str
    author: str
    boot: bytes
    height: int
    forked: int
    dropped_unix_ms: int
    kept: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class Commit:
    """What one transaction writes. `Committed(ticket)` or `CommitFailed(ticket)` follows.
    `segments` are links of logs, `kept` stand alone. `notes` are wishes and the owner's choices."""

    ticket: int
    changes: tuple[tuple[str, str, int, bytes], ...]  # (service, cid, seq, bytes)
    segments: tuple[Segment, ...]
    services: tuple[tuple[str, str, bool, int], ...]  # (service, petname, taken up, epoch)
    answers: tuple[tuple[str, str, str], ...] = ()  # (service, request, result CID)
    kept: tuple[Segment, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[tuple[str, str, bytes], ...] = ()  # (kind, name, data); without data: removed
    forgotten: tuple[str, ...] = ()  # services whose changes are kept no longer


@dataclass(frozen=True)
class TwinSeen:
    """Another node uses this node's key: tell the owner. Once for each boot."""

    boot: bytes
    since_unix_ms: int


Effect = (
    Announce
    | Connect
    | Execute
    | Fail
    | FetchBlocks
    | JobChanged
    | JoinTopic
    | GuestReads
    | Kill
    | LeaveTopic
    | Locate
    | LookFurther
    | Refuse
    | Reply
    | Send
    | TwinSeen
    | WishChanged
)
