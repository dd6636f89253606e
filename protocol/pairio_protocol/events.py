"""Events: everything that can happen to a core. Randomness and content come in here, never time.

A `call` is the driver's name for whoever waits for an answer; exactly one `Reply` or `Fail`
follows for every event that has one.
"""

from dataclasses import dataclass
from typing import Any

from pairio_protocol.effects import Dropped
from pairio_protocol.links import Link
from pairio_protocol.records import Resources

__all__ = [
    "AcceptService",
    "AddMember",
    "Adopted",
    "ApproveWish",
    "CancelRequests",
    "CommitFailed",
    "Committed",
    "CreateService",
    "DeclineService",
    "DenyWish",
    "Draining",
    "Event",
    "Executed",
    "Fetched",
    "FrameReceived",
    "GossipReceived",
    "InstallApp",
    "Invite",
    "JoinService",
    "LeaveService",
    "PeerDown",
    "PeerUp",
    "RemoveMember",
    "Restored",
    "SetRoles",
    "Submit",
    "TimePassed",
    "Uninvite",
    "Woke",
]


@dataclass(frozen=True)
class Adopted:
    """A run that an earlier start of this node began, and that outlived it: its supervisor lives,
    or has left an outcome. The fields are those of the `Execute` that began it. The core makes it
    one of its runs again, and `Executed` follows as for any; or it answers `Kill`."""

    service: str
    attempt: str
    request: str
    run: str
    upstream: tuple[str, ...]
    coordinators: tuple[str, ...]
    lease_ms: int
    started_unix_ms: int


@dataclass(frozen=True)
class Restored:
    """What the disk held at start: service rows, then changes, then segments, each in order; and
    the runs that outlived the last start. Runs of this node that did not are ended."""

    services: tuple[tuple[str, str, bool], ...]  # (service, petname, taken up)
    changes: tuple[tuple[str, bytes], ...]
    segments: tuple[bytes, ...]
    answers: tuple[tuple[str, str, str], ...] = ()  # (service, request, result CID)
    adopted: tuple[Adopted, ...] = ()
    kept: tuple[bytes, ...] = ()  # segments of logs that were dropped
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[tuple[str, str, bytes], ...] = ()  # wishes, and the owner's choices


@dataclass(frozen=True)
class PeerUp:
    """A connection to a peer is usable in both directions."""

    peer: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerDown:
    """The connection is gone."""

    peer: str


@dataclass(frozen=True)
class FrameReceived:
    """A frame of the authenticated `peer` on control or sync."""

    peer: str
    data: bytes


@dataclass(frozen=True)
class GossipReceived:
    """A frame of a service's topic, by whoever passed it on; `accepts_gossip` said yes."""

    service: str
    forwarder: str
    data: bytes


@dataclass(frozen=True)
class Submit:
    """A local client wants a job done. `definition` has the original's form."""

    call: int
    service: str
    definition: dict[str, Any]
    resources: Resources
    mode: str = "use"
    tags: tuple[str, ...] = ()
    batch: str = ""
    priority: int = 0
    targets: tuple[str, ...] = ()
    isolation_min: str = ""
    local_content: tuple[str, ...] = ()  # CIDs of inputs that this node holds


@dataclass(frozen=True)
class CreateService:
    """The owner creates a service; `nonce` (32 hex digits) makes its id unique."""

    call: int
    name: str
    nonce: str


@dataclass(frozen=True)
class AddMember:
    """The owner, an admin, puts a key on the list."""

    call: int
    service: str
    peer: str
    roles: tuple[str, ...]
    member: str


@dataclass(frozen=True)
class RemoveMember:
    """The owner, an admin, takes a member (or one of his keys) off the list. What this node knows
    of the member's logs stays; later segments of before the change do not count."""

    call: int
    service: str
    member: str
    peer: str = ""


@dataclass(frozen=True)
class SetRoles:
    """The owner, an admin, gives a member other roles."""

    call: int
    service: str
    member: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class CancelRequests:
    """A local client withdraws requests. They must be its member's, or this node an admin's."""

    call: int
    service: str
    requests: tuple[str, ...]


@dataclass(frozen=True)
class InstallApp:
    """The owner, an admin, installs or updates an app (a document of `apps.validate_app`)."""

    call: int
    service: str
    app: dict[str, Any]


@dataclass(frozen=True)
class AcceptService:
    """The owner consents to be a member."""

    call: int
    service: str


@dataclass(frozen=True)
class DeclineService:
    """The owner wants no part in a service that names this node; it is not offered again."""

    call: int
    service: str


@dataclass(frozen=True)
class Invite:
    """The owner, an admin, makes an invitation; `key` is the public half of its token."""

    call: int
    service: str
    key: str
    roles: tuple[str, ...]
    uses: int
    expires_unix_ms: int


@dataclass(frozen=True)
class Uninvite:
    """The owner, an admin, withdraws an invitation."""

    call: int
    service: str
    key: str


@dataclass(frozen=True)
class JoinService:
    """The owner joins with a link. Without roles: those that the link gives."""

    call: int
    link: Link
    name: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class LeaveService:
    """The owner takes part in a service no more: its runs here end, its requests are withdrawn,
    and the admins are asked to take this node off the list."""

    call: int
    service: str


@dataclass(frozen=True)
class ApproveWish:
    """The owner, an admin, grants a wish that waits (named by the beginning of its id, or by its
    peer); without roles: those that it asks for."""

    call: int
    service: str
    wish: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class DenyWish:
    """The owner, an admin, refuses a wish that waits."""

    call: int
    service: str
    wish: str


@dataclass(frozen=True)
class Executed:
    """A run that `Execute` asked for, or that was adopted, is over. `kind` is "" (a result),
    `infra`, `canceled`, or `yield` (this node stops: elsewhere, please)."""

    attempt: str
    kind: str
    status: str
    error: str
    outputs: dict[str, tuple[str, int, str]]
    console: str
    usage: dict[str, int]
    isolation: str
    limit: str = ""


@dataclass(frozen=True)
class Fetched:
    """A `FetchBlocks` is over."""

    ticket: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Committed:
    """The commit with this ticket is on disk."""

    ticket: int


@dataclass(frozen=True)
class CommitFailed:
    """The commit with this ticket is not on disk: disk full, read-only, broken."""

    ticket: int
    reason: str


@dataclass(frozen=True)
class Draining:
    """The node is about to stop and leaves no run behind: it takes no more, and gives back what
    waits. What executes is ended by the shell (`Executed` with kind `yield`)."""


@dataclass(frozen=True)
class TimePassed:
    """Nothing happened but time."""


@dataclass(frozen=True)
class Woke:
    """The machine slept for `gap_ms`: what peers said before is old."""

    gap_ms: int


Event = (
    AcceptService
    | AddMember
    | ApproveWish
    | CancelRequests
    | CommitFailed
    | Committed
    | CreateService
    | DeclineService
    | DenyWish
    | Draining
    | Executed
    | Fetched
    | FrameReceived
    | GossipReceived
    | InstallApp
    | Invite
    | JoinService
    | LeaveService
    | PeerDown
    | PeerUp
    | RemoveMember
    | Restored
    | SetRoles
    | Submit
    | TimePassed
    | Uninvite
    | Woke
)
