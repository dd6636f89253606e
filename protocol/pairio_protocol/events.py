"""Events: everything that can happen to a core. Randomness and content come in here, never time.

A `call` is the driver's name for whoever waits for an answer; exactly one `Reply` or `Fail`
follows for every event that has one.
"""

from dataclasses import dataclass, field
from typing import Any

from pairio_protocol.effects import Dropped
from pairio_protocol.links import Link
from pairio_protocol.records import Resources, SourceRead

__all__ = [
    "AcceptService",
    "Adopted",
    "ApproveWish",
    "CancelRequests",
    "CommitFailed",
    "Committed",
    "ContentDropped",
    "ContentUnavailable",
    "CreateService",
    "DeclineService",
    "DenyWish",
    "Draining",
    "EndService",
    "Event",
    "Executed",
    "Fetched",
    "FrameReceived",
    "GossipReceived",
    "Grant",
    "InstallApp",
    "Invite",
    "JoinService",
    "LeaveService",
    "Located",
    "OwnerHours",
    "PeerDown",
    "PeerUp",
    "Progressed",
    "RemoveApp",
    "RenameMember",
    "RenameService",
    "RenewProposal",
    "Restored",
    "Revoke",
    "SecretsHeld",
    "SetAdmins",
    "SetPublic",
    "SetResults",
    "SignOver",
    "SignProposal",
    "StorageRoom",
    "Submit",
    "TimePassed",
    "Uninvite",
    "WithdrawProposal",
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
class Progressed:
    """A run that goes on here says how far it is, in thousandths."""

    attempt: str
    permille: int


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
    local_content: tuple[str, ...] = ()  # CIDs of inputs that this node holds, to be replicated
    #: Inputs, their bytes, and members that hold them; this node may be one.
    held: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    #: Stored with the request, as a note that says which one it became; empty: none.
    key: str = ""
    #: Names of the secrets that the client gave; their values are the shell's.
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class CreateService:
    """The owner creates a service; `nonce` (32 hex digits) makes its id unique."""

    call: int
    name: str
    nonce: str


@dataclass(frozen=True)
class Grant:
    """The owner, an admin, gives roles to a member (by name, or by one of his keys) beside those
    that he has; a key that is nobody's is put on the list, as member `name`."""

    call: int
    service: str
    who: str
    roles: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Revoke:
    """The owner, an admin, takes roles from a member; without `roles` the member, or one key only,
    off the list. What connected members know of his logs by now stays, or only what was issued up
    to `since_unix_ms`; later segments of before the change do not count."""

    call: int
    service: str
    who: str
    roles: tuple[str, ...] = ()
    since_unix_ms: int | None = None


@dataclass(frozen=True)
class RenameMember:
    """The owner, an admin, calls a member otherwise."""

    call: int
    service: str
    member: str
    name: str


@dataclass(frozen=True)
class SetAdmins:
    """The owner, an admin, names all admins anew (members or keys) and how many have to sign."""

    call: int
    service: str
    admins: tuple[str, ...]
    threshold: int


@dataclass(frozen=True)
class EndService:
    """The owner, an admin, ends a service: nobody has a role any more."""

    call: int
    service: str


@dataclass(frozen=True)
class SignOver:
    """The owner, an admin, has looked at the branches of changes that lost: what they took from
    members is given back, as far as the winning branch gives it."""

    call: int
    service: str


@dataclass(frozen=True)
class RenameService:
    """The owner calls a service otherwise on this node."""

    call: int
    service: str
    name: str


@dataclass(frozen=True)
class SignProposal:
    """The owner, an admin, signs a change that others have proposed: one kept here (its id, or a
    unique end of it; empty: the only one), or the one in `data`."""

    call: int
    service: str
    proposal: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class WithdrawProposal:
    """The owner drops a proposal on this node: it is not taken again from others."""

    call: int
    service: str
    proposal: str


@dataclass(frozen=True)
class RenewProposal:
    """The owner, an admin, proposes the same ops again, after the newest change."""

    call: int
    service: str
    proposal: str


@dataclass(frozen=True)
class LookFor:
    """Ask connected members for a job that is not known here, or for a result by its CID."""

    call: int
    service: str
    job: str


@dataclass(frozen=True)
class ImportEvidence:
    """Changes, proofs of forks and segments of a service came from a file. They count as if a peer
    had sent them: by what they are."""

    call: int
    service: str
    changes: tuple[bytes, ...] = ()
    segments: tuple[bytes, ...] = ()
    forks: tuple[tuple[bytes, bytes], ...] = ()


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
class RemoveApp:
    """The owner, an admin, takes an app off the list; its jobs that are open are blocked."""

    call: int
    service: str
    app: str


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
class SetPublic:
    """An admin's owner lets strangers submit within limits (see `open_submit`), or no more."""

    call: int
    service: str
    open_submit: dict[str, int] | None


@dataclass(frozen=True)
class SetResults:
    """An admin's owner lets anybody read what the jobs of a service made, or members only."""

    call: int
    service: str
    is_public: bool


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
    #: Of each input by URL what was read: `records.SourceRead`.
    sources: dict[str, SourceRead] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """A `FetchBlocks` is over. `no_room` says that it came to nothing because of this node's disk,
    not because nobody had it."""

    ticket: str
    ok: bool
    reason: str = ""
    no_room: bool = False


@dataclass(frozen=True)
class ContentDropped:
    """This node no longer holds the content of these results (CIDs): its outputs or its console
    were collected, or are gone with a disk. It does not count as a holder from now on; members who
    look after the result find that out with their next round, and make a new copy."""

    service: str
    results: tuple[str, ...]


@dataclass(frozen=True)
class ContentUnavailable:
    """Somebody here wants the content of a result (a CID), and no member that was asked gave it.
    If nobody has it for a while, it is computed again."""

    service: str
    result: str


@dataclass(frozen=True)
class Located:
    """A `Locate` is over: everything is `here`, or something is missing."""

    ticket: str
    here: bool


@dataclass(frozen=True)
class LookedFurther:
    """A `LookFurther` is over; what it found was imported before."""

    call: int


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
class OwnerHours:
    """By the owner's rules no job may begin now for these services, as the rules name them ("":
    for any). What executes goes on; what waits is given back."""

    closed: frozenset[str]


@dataclass(frozen=True)
class SecretsHeld:
    """The jobs, as (service, job id), of which this node now has the secrets."""

    held: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class StorageRoom:
    """What of the block store is protected leaves no room for further jobs: what must be free, and
    what is, in words for people. Both empty: there is room again."""

    need: str = ""
    have: str = ""


@dataclass(frozen=True)
class TimePassed:
    """Nothing happened but time."""


@dataclass(frozen=True)
class Woke:
    """The machine slept for `gap_ms`: what peers said before is old."""

    gap_ms: int


Event = (
    AcceptService
    | ApproveWish
    | CancelRequests
    | CommitFailed
    | Committed
    | ContentDropped
    | ContentUnavailable
    | CreateService
    | DeclineService
    | DenyWish
    | Draining
    | EndService
    | Executed
    | Fetched
    | FrameReceived
    | GossipReceived
    | Grant
    | ImportEvidence
    | InstallApp
    | Invite
    | JoinService
    | LeaveService
    | Located
    | LookFor
    | LookedFurther
    | OwnerHours
    | PeerDown
    | PeerUp
    | Progressed
    | RemoveApp
    | RenameMember
    | RenameService
    | RenewProposal
    | Restored
    | Revoke
    | SecretsHeld
    | SetAdmins
    | SetPublic
    | SetResults
    | SignOver
    | SignProposal
    | StorageRoom
    | Submit
    | TimePassed
    | Uninvite
    | WithdrawProposal
    | Woke
)
