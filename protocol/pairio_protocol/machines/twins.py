"""Twins: another node that runs with this node's key, which a copied home makes.

    presence of our peer under another boot --it began later, or its counter grew--> live
    a segment in a log of ours, not written here, with a record of after this start --> live
    not heard of for TWIN_EXPIRY_MS --> gone: its requests are looked after like those of any
        earlier start of this node

Logs are per boot, so nothing forks. But a connection belongs to a peer id: twins take each other's
messages, and each would award the other's requests, give up what the other follows, and end what
the other executes. So a node leaves alone what a live twin wants, and ends only attempts that its
own home began. Earlier boots of this home are normal, and no twins, whoever shows them.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pairio_protocol.context import Context
from pairio_protocol.effects import TwinSeen
from pairio_protocol.limits import TWIN_EXPIRY_MS, TWIN_PROOF_MS
from pairio_protocol.messages import Presence
from pairio_protocol.signing import sha256

__all__ = ["Twin", "Twins"]

#: Logs that one start of a node may write to, each derived from the one before.
_OWN_TURNS_MAX = 4096
_PAST_TURNS_MAX = 64
_ROOTS_KEPT_MAX = 1024
_SUSPECTS_MAX = 16


@dataclass
class Twin:
    """Another start of this key. Live once it was proved to run beside this one. `shown` is the
    counter of the newest presence that proved it: neighbours may show it for ever."""

    boot: bytes
    counter: int
    first_ms: int
    since_unix_ms: int
    heard_ms: int
    live: bool = False
    shown: int = -1


class Twins:
    """Whoever else runs with this key; `on_change` is called when one is noticed or gone."""

    def __init__(self, ctx: Context, on_change: Callable[[], None]) -> None:
        self._ctx = ctx
        self._on_change = on_change
        self._twins: dict[bytes, Twin] = {}
        self._roots: OrderedDict[bytes, bytes] = OrderedDict()  # boot of a log -> of its start

    @property
    def live(self) -> list[Twin]:
        """The twins that run now, as far as is known."""
        if not self._twins:
            return []
        return sorted((t for t in self._twins.values() if t.live), key=lambda t: t.since_unix_ms)

    def is_own(self, boot: bytes) -> bool:
        """Say whether this home wrote a log: in this start, or in an earlier one."""
        root = self._root(boot)
        return root == self._ctx.config.boot or root in self._ctx.config.past_boots

    def is_live(self, boot: bytes) -> bool:
        """Say whether a log of ours is being written by another node."""
        twin = self._twins.get(self._root(boot)) if self._twins else None
        return twin is not None and twin.live

    def coordinates(self, attempt: str) -> bool:
        """Say whether a live twin gave out an attempt id."""
        coordinator, _, rest = attempt.partition("/")
        prefix = rest.partition("/")[0]
        return coordinator == self._ctx.me and any(
            twin.boot.hex()[:16] == prefix for twin in self.live
        )

    def on_presence(self, entry: Presence) -> None:
        """Somebody shows what this key signed as its presence."""
        if self.is_own(entry.boot):
            return
        twin = self._twin(entry.boot, entry.counter)
        if entry.counter <= twin.shown:
            return  # said once more by others: it may be gone since
        now_ms, config = self._ctx.now_ms, self._ctx.config
        grew = entry.counter > twin.counter and now_ms - twin.first_ms >= TWIN_PROOF_MS
        if grew or entry.started_unix_ms > config.started_unix_ms:
            twin.shown = entry.counter
            self._hear(twin, entry.started_unix_ms)

    def on_segment(self, boot: bytes, issued_unix_ms: int) -> None:
        """A segment of this key counts that this start did not write; `issued_unix_ms` is its
        newest record's."""
        if issued_unix_ms > self._ctx.config.started_unix_ms and not self.is_own(boot):
            self._hear(self._twin(self._root(boot), 0), issued_unix_ms)

    def _twin(self, boot: bytes, counter: int) -> Twin:
        if boot not in self._twins:
            now_ms = self._ctx.now_ms
            self._twins[boot] = Twin(boot, counter, now_ms, self._ctx.unix_ms, now_ms)
            if len(self._twins) > _SUSPECTS_MAX:
                oldest = min(self._twins.values(), key=lambda t: (t.live, t.heard_ms))
                del self._twins[oldest.boot]
        return self._twins.get(boot) or Twin(boot, counter, self._ctx.now_ms, 0, self._ctx.now_ms)

    def _hear(self, twin: Twin, since_unix_ms: int) -> None:
        twin.heard_ms = self._ctx.now_ms
        if twin.live:
            return
        twin.live = True
        twin.since_unix_ms = min(since_unix_ms, twin.since_unix_ms)
        self._twins[twin.boot] = twin
        self._roots.clear()  # logs may derive from it
        self._ctx.counters["twins noticed"] += 1
        self._ctx.emit(TwinSeen(twin.boot, twin.since_unix_ms))
        self._on_change()

    def _root(self, boot: bytes) -> bytes:
        """Return the boot of the start that wrote a log: logs after its first derive from it."""
        config = self._ctx.config
        if boot == config.boot or boot in self._twins or boot in config.past_boots:
            return boot
        if boot not in self._roots:
            self._roots[boot] = self._find_root(boot)
            if len(self._roots) > _ROOTS_KEPT_MAX:
                self._roots.popitem(last=False)
        return self._roots[boot]

    def _find_root(self, boot: bytes) -> bytes:
        config = self._ctx.config
        roots = [(config.boot, _OWN_TURNS_MAX)]
        roots += [(known, _PAST_TURNS_MAX) for known in (*self._twins, *config.past_boots)]
        for root, turns in roots:
            derived = root
            for _ in range(turns):
                derived = sha256(derived)[:16]
                if derived == boot:
                    return root
        return boot

    def tick(self) -> None:
        """Who was not heard of for long is gone."""
        gone = [t for t in self.live if self._ctx.now_ms - t.heard_ms >= TWIN_EXPIRY_MS]
        for twin in gone:
            twin.live = False  # what it said last is known, and is no news when it is shown again
        if gone:
            self._on_change()

    def deadline_ms(self) -> int | None:
        """When the first live one counts as gone."""
        if not self._twins:
            return None
        return min((t.heard_ms + TWIN_EXPIRY_MS for t in self.live), default=None)
