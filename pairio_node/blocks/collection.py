"""Collects from a block store what nobody needs, when it is nearly full or somebody asks for it.

    used > HIGH_PERCENT of the quota, or a block does not fit --> collect down to LOW_PERCENT
        still less than ROOM_PERCENT free: *full*; what is protected fills the quota

One collection at a time, in a thread, which rests often (`Pace`). Who needs what is asked at its
beginning; what work under way comes to count on meanwhile is kept by `in_use`.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pairio_node.blocks.base import StoreUnavailable
from pairio_node.blocks.collector import (
    Gone,
    Pace,
    Stopped,
    Survey,
    plan,
    reasons_below,
    survey,
)
from pairio_node.blocks.scoped import ScopedContent

__all__ = ["IN_USE", "Collection", "Looked", "Needs", "Report"]

HIGH_PERCENT = 90
LOW_PERCENT = 80
ROOM_PERCENT = 5
#: After a collection that did not help, no further one is made for a block for so long.
VAIN_S = 5.0
#: The reason of blocks that work under way counts on.
IN_USE = "in use"


@dataclass(frozen=True)
class Needs:
    """Roots that must stay, by the reason why; and others that somebody names."""

    reasons: dict[str, set[str]] = field(default_factory=dict)
    named: Iterable[str] = ()


@dataclass(frozen=True)
class Looked:
    """A store as it was looked at: what is there, and what has to stay."""

    survey: Survey
    needs: Needs
    sizes: dict[str, int]  # bytes by reason, and "cache"


@dataclass(frozen=True)
class Report:
    """What a collection did, or would do."""

    used_bytes: int
    freed_bytes: int
    roots: tuple[str, ...]
    blocks: int
    protected: dict[str, int]


class Collection:
    """Collects from the store of `contents`, which may hold `quota_bytes`. `needs` is asked in a
    thread; `on_gone` is told in it which blocks have gone."""

    def __init__(
        self,
        contents: ScopedContent,
        quota_bytes: int,
        needs: Callable[[], Needs],
        on_gone: Callable[[set[str]], None],
    ) -> None:
        self._contents = contents
        self._store = contents.store
        self.quota_bytes = quota_bytes
        self._needs = needs
        self._on_gone = on_gone
        self._turn = threading.Lock()
        self._pace = Pace()
        self._vain_until_s = 0.0
        self._unfit_bytes = 0  # of the last block that did not fit
        #: Bytes by reason when it was last looked.
        self.sizes: dict[str, int] = {}
        self.counters: Counter[str] = Counter(
            collections=0, evicted_roots=0, evicted_blocks=0, evicted_bytes=0
        )

    @property
    def is_high(self) -> bool:
        """Say whether it is time to collect."""
        return self._store.used_bytes * 100 > self.quota_bytes * HIGH_PERCENT

    @property
    def room_bytes(self) -> int:
        """How much the quota leaves."""
        return max(0, self.quota_bytes - self._store.used_bytes)

    @property
    def is_short(self) -> bool:
        """Say whether there is no room to speak of."""
        return self.room_bytes < self.room_needed_bytes

    @property
    def room_needed_bytes(self) -> int:
        """What must be free for new work to begin; a block that did not fit must fit at least."""
        return max(self.quota_bytes * ROOM_PERCENT // 100, self._unfit_bytes)

    def stop(self) -> None:
        """End the collection under way, and begin no other."""
        self._pace.stop()

    def look(self) -> Looked:
        """Look at the store and at who needs what of it, in a thread."""
        needs = self._needs()
        in_use = self._store.in_use.all()
        found = survey(self._store, self._pace)
        reasons = {**needs.reasons, IN_USE: in_use}
        self.sizes = reasons_below(found, reasons, self._pace)
        return Looked(found, Needs(reasons, needs.named), self.sizes)

    def collect(self, to_bytes: int | None = None, *, dry: bool = False) -> Report:
        """Let go what may go until the store takes no more than `to_bytes` (LOW_PERCENT of the
        quota); `dry`: only say what would go. In a thread; raises Stopped, and StoreUnavailable or
        OSError when what must stay cannot be told: then nothing goes."""
        with self._turn:
            return self._collect(to_bytes, dry)

    def make_room(self, size_bytes: int) -> bool:
        """Make room for a block that does not fit, in a thread; say whether it fits now."""
        with self._turn:
            if size_bytes <= self.room_bytes:
                return True  # another one that waited has made it
            if size_bytes > self.quota_bytes:
                return False
            self._unfit_bytes = size_bytes
            if time.monotonic() < self._vain_until_s:
                return False
            try:
                self._collect(min(self._low_bytes, self.quota_bytes - size_bytes), dry=False)
            except Stopped:
                return False
            except (StoreUnavailable, OSError):
                pass  # it is not looked at the whole store again for each block that comes
            if size_bytes <= self.room_bytes:
                return True
            self._vain_until_s = time.monotonic() + VAIN_S
            return False

    @property
    def _low_bytes(self) -> int:
        return self.quota_bytes * LOW_PERCENT // 100

    def _collect(self, to_bytes: int | None, dry: bool) -> Report:
        with self._store.in_use.collecting():
            looked = self.look()
            found = looked.survey
            kept = set().union(*looked.needs.reasons.values())
            free_bytes = found.used_bytes - (self._low_bytes if to_bytes is None else to_bytes)
            planned = plan(found, kept, looked.needs.named, free_bytes, self._pace)
            if not dry:
                planned = self._sweep(found, planned)
                if planned:
                    self._vain_until_s = 0.0
                if self._unfit_bytes <= self.room_bytes:
                    self._unfit_bytes = 0  # it would fit now
                self._contents.clean_marks_sync(found.blocks.keys())
        return Report(
            used_bytes=found.used_bytes,
            freed_bytes=found.size_of(c for one in planned for c in one.cids),
            roots=tuple(one.root for one in planned),
            blocks=sum(len(one.cids) for one in planned),
            protected={why: size for why, size in looked.sizes.items() if why != "cache"},
        )

    def _sweep(self, found: Survey, planned: list[Gone]) -> list[Gone]:
        """Delete; return what has gone of what was planned. Whatever ends this, `on_gone` is told
        what has gone by then."""
        gone: list[Gone] = []
        cids_gone: set[str] = set()
        self.counters["collections"] += 1
        try:
            for one in planned:
                self._pace()
                self._contents.unmark_sync(one.cids)
                before = len(cids_gone)
                for cid in one.cids:
                    self._pace()
                    if self._contents.delete_sync(cid):
                        cids_gone.add(cid)
                    elif cid == one.root:
                        break  # work counts on it since
                if len(cids_gone) > before:
                    gone.append(Gone(one.root, tuple(c for c in one.cids if c in cids_gone)))
        finally:
            self.counters["evicted_roots"] += len(gone)
            self.counters["evicted_blocks"] += len(cids_gone)
            self.counters["evicted_bytes"] += found.size_of(cids_gone)
            if cids_gone:
                self._on_gone(cids_gone)
        return gone
