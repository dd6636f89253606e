"""What all machines of one core share: identity, the time of the turn, the list of effects."""

from collections import Counter
from dataclasses import dataclass, field

from pairio_protocol.effects import Effect, Refuse, Send
from pairio_protocol.limits import (
    FRAME_SIZE_BYTES_MAX,
    LEASE_MS,
    LOG_AGE_MAX_MS,
    REPAIR_INTERVAL_MS,
    RETENTION_LOOK_MS,
    RETENTION_MS,
)
from pairio_protocol.messages import MESSAGES, SYNC_KINDS, Message
from pairio_protocol.owner import OwnerRules
from pairio_protocol.signing import SigningKey

__all__ = ["Context", "CoreConfig"]


@dataclass(frozen=True)
class CoreConfig:
    """How this node's owner set it up.

    `trust` are the peers whose services this node takes up unasked; `compute` says whether it
    offers to run jobs; the capacities are what all runs together may use.
    """

    boot: bytes
    started_unix_ms: int
    #: boots of earlier starts on this home; logs of this key under other boots are another node's
    past_boots: tuple[bytes, ...] = ()
    trust: tuple[str, ...] = ()
    compute: bool = True
    #: whether it sponsors and runs what strangers ask of public services
    guests: bool = True
    cpu_millicores: int = 1000
    memory_mib: int = 1024
    gpus: int = 0
    #: how strongly apps without an image are isolated here
    isolation: str = "none"
    #: what runs jobs here, by name; apps with an image need `container`
    executors: tuple[str, ...] = ()
    #: services or apps that may run without a sandbox here; "*" = all
    allow_process: tuple[str, ...] = ()
    #: services or apps whose jobs may have this machine's network; "*" = all
    allow_network: tuple[str, ...] = ()
    #: what else the owner does not let run here
    owner_rules: tuple[OwnerRules, ...] = ()
    lease_ms: int = LEASE_MS
    #: logs in which nothing is newer than this are dropped when all in them is over
    retention_ms: int = RETENTION_MS
    retention_look_ms: int = RETENTION_LOOK_MS
    #: after this time the node begins a new log
    log_age_ms: int = LOG_AGE_MAX_MS
    #: how often it is looked at whether enough members still hold a result
    repair_interval_ms: int = REPAIR_INTERVAL_MS
    replicas: int = 1
    #: whether a submit may look further than connected members (`LookFurther`)
    looks_further: bool = False
    addresses: tuple[str, ...] = ()


@dataclass
class Context:
    """One turn's surroundings; `now_ms` is the node's clock, `unix_ms` only for people."""

    key: SigningKey
    config: CoreConfig
    now_ms: int = 0
    unix_ms: int = 0
    effects: list[Effect] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    connected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: services for which the owner's hours are over, as in the rules; "": for all
    closed: frozenset[str] = frozenset()
    #: (service, job) of which this node has the secrets that its submitter gave
    secrets_held: frozenset[tuple[str, str]] = frozenset()
    #: what of the block store must be free for a job, and what is; None: there is room
    no_room: tuple[str, str] | None = None

    @property
    def me(self) -> str:
        """This node's peer id."""
        return self.key.peer

    def emit(self, effect: Effect) -> None:
        """Add an effect to the turn."""
        self.effects.append(effect)

    def send(self, peer: str, message: Message) -> None:
        """Send a message to a connected peer, on the channel of its kind."""
        if peer in self.connected:
            channel = "sync" if isinstance(message, SYNC_KINDS) else "control"
            data = MESSAGES.encode(message)
            if len(data) > FRAME_SIZE_BYTES_MAX:  # of what others said: it must not end this node
                self.counters["messages too large to be sent"] += 1
                return
            self.effects.append(Send(peer, channel, data))

    def refuse(self, peer: str, reason: str) -> None:
        """Count a peer's wrong move; `reason` is a short phrase, the same for every such move."""
        self.counters[f"refused: {reason}"] += 1
        self.effects.append(Refuse(peer, reason))
