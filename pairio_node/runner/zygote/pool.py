"""Which apps have warm workers on this node: started, kept within bounds, recycled, let go."""

import fcntl
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.launch import Launcher
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.processes import descendants, tree_use
from pairio_node.runner.zygote.link import HostGone, HostLink

__all__ = ["App", "WarmLimits", "WarmPool", "Warmed"]

_LOOK_S = 5.0
_END_S = 2.0
_FAILED_MAX = 3
#: An app that cannot be warm is tried again after this.
_TRY_AGAIN_S = 600.0
_ENTRIES_MAX = 256
_STARTING_MAX = 2


@dataclass(frozen=True)
class WarmLimits:
    """Bounds of all warm workers. `mode`: `single` has no zygotes, `off` nothing."""

    mode: str = "on"
    apps_max: int = 8
    memory_bytes: int = 2 * 2**30
    jobs_max: int = 10_000
    age_s: float = 3600.0
    idle_s: float = 600.0
    import_s: float = 60.0
    workers: int = 2


@dataclass(frozen=True)
class App:
    """Jobs that are equal in this may share a zygote. `name` is for people."""

    service: str
    bundle: str
    executable: str
    cpus: int
    name: str


@dataclass(eq=False)
class Warmed:
    """Warm workers of one app."""

    host: HostLink
    kind: str
    began_s: float
    pydantic: bool = False
    jobs: int = 0
    running: int = 0


@dataclass
class _Entry:
    app: App
    config: Callable[[], dict[str, Any]]
    warmed: Warmed | None = None
    starting: bool = False
    why: str = ""
    jobs: int = 0
    cold: int = 0
    failed: int = 0
    used_s: float = 0.0
    try_at_s: float = 0.0
    pydantic: bool = False
    memory_bytes: int = 0


@dataclass
class WarmPool:
    """`folder` is for workers, beside that of the jobs. `serve` must run for anything to get
    warm."""

    folder: Path
    launcher: Launcher
    limits: WarmLimits = field(default_factory=WarmLimits)

    def __post_init__(self) -> None:
        self._entries: dict[App, _Entry] = {}
        self._wake = trio.Event()
        self._left: list[HostLink] = []  # let go, not ended yet

    # -- for the runner -------------------------------------------------------------------

    def take(
        self, app: App, config: Callable[[], dict[str, Any]], fits: Callable[[str], bool]
    ) -> Warmed | None:
        """Return warm workers for a job of this app, to be given back; None: it runs cold, and
        later ones may not. `fits` says whether a kind of workers can take the job."""
        if self.limits.mode == "off":
            return None
        if app not in self._entries:
            self._make_room()
        entry = self._entries.setdefault(app, _Entry(app, config))
        entry.config, entry.used_s = config, trio.current_time()
        warmed = entry.warmed
        if warmed is None or not fits(warmed.kind):
            entry.cold += 1
            if warmed is None and not entry.starting:
                self._wake.set()
            return None
        entry.jobs += 1
        warmed.jobs += 1
        warmed.running += 1
        return warmed

    def give_back(self, warmed: Warmed) -> None:
        """The job has ended, or left."""
        warmed.running -= 1

    def needs_pydantic(self, app: App) -> None:
        """A job of this app imported pydantic: workers are made, once, that have it from the start.
        All that jobs of this app tell one another by it is that one did so."""
        entry = self._entries.get(app)
        if entry is not None and not entry.pydantic:
            entry.pydantic = True
            self._wake.set()

    def failed(self, app: App, warmed: Warmed, why: str) -> None:
        """These workers did not take a job: others are made in their place, a few times."""
        entry = self._entries.get(app)
        if entry is None:
            return
        entry.jobs -= 1
        entry.cold += 1
        if entry.warmed is not warmed or why == "no worker is ready":
            return
        self._leave(warmed.host)
        entry.warmed, entry.why = None, why
        entry.failed += 1
        if entry.failed >= _FAILED_MAX:
            entry.failed, entry.try_at_s = 0, trio.current_time() + _TRY_AGAIN_S
        self._wake.set()

    def status(self) -> list[dict[str, Any]]:
        """Return what each app has, most recently used first."""
        entries = sorted(self._entries.values(), key=lambda e: -e.used_s)
        return [
            {
                "app": e.app.name,
                "service": e.app.service,
                "workers": e.warmed.kind if e.warmed else "starting" if e.starting else "cold",
                "why": e.why,
                "jobsWarm": e.jobs,
                "jobsCold": e.cold,
                "memoryBytes": e.memory_bytes,
            }
            for e in entries
        ]

    # -- keeping ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Start and recycle workers until cancelled; then let all go."""
        await trio.to_thread.run_sync(_remove_left, self.folder)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    self._wake = trio.Event()
                    for entry in self._due():
                        entry.starting = True
                        nursery.start_soon(self._start, entry)
                    with trio.move_on_after(_LOOK_S):
                        await self._wake.wait()
                    await self._let_go()
        finally:
            for entry in self._entries.values():
                if entry.warmed is not None:
                    self._leave(entry.warmed.host)
                    entry.warmed = None
            await self._end()

    def _due(self) -> list[_Entry]:
        """Return the entries that are to get (other) workers now, within the bounds."""
        now_s = trio.current_time()
        due = [
            e
            for e in self._entries.values()
            if not e.starting
            and now_s >= e.try_at_s
            and (
                e.warmed is None or self._is_old(e.warmed, now_s) or e.pydantic > e.warmed.pydantic
            )
            and now_s - e.used_s < self.limits.idle_s
        ]
        due.sort(key=lambda e: -e.used_s)
        starting = sum(e.starting for e in self._entries.values())
        return due[: max(0, _STARTING_MAX - starting)]

    def _is_old(self, warmed: Warmed, now_s: float) -> bool:
        return warmed.jobs >= self.limits.jobs_max or now_s - warmed.began_s >= self.limits.age_s

    async def _start(self, entry: _Entry) -> None:
        """Start workers; those that are there before serve until the others are ready."""
        now_s = trio.current_time()
        host = HostLink(self.launcher)
        try:
            config = entry.config() | {
                "folder": str(self.folder / secrets.token_hex(8)),
                "single_because": "the node's settings" if self.limits.mode == "single" else "",
                "import_s": self.limits.import_s,
                "workers": self.limits.workers,
                "pydantic": (pydantic := entry.pydantic),
            }
            answer = await host.begin(config, 2 * self.limits.import_s + 10)
        except (HostGone, OSError) as error:
            self._leave(host)
            entry.why, entry.try_at_s = str(error), now_s + _TRY_AGAIN_S
        except trio.Cancelled:
            self._leave(host)
            raise
        else:
            if self._entries.get(entry.app) is not entry:
                self._leave(host)
                return
            if entry.warmed is not None:
                self._leave(entry.warmed.host)
            entry.warmed = Warmed(host, answer["kind"], trio.current_time(), pydantic)
            entry.why = answer["why"]
        finally:
            entry.starting = False
            self._wake.set()

    async def _let_go(self) -> None:
        """End what has been idle for long, then the least recently used beyond the bounds."""
        self._left = [host for host in self._left if not host.has_ended()]
        now_s = trio.current_time()
        warm = [e for e in self._entries.values() if e.warmed is not None]
        for entry in warm:
            assert entry.warmed is not None
            entry.memory_bytes = await trio.to_thread.run_sync(
                _memory_bytes, entry.warmed.host.pid, entry.warmed.kind
            )
        warm.sort(key=lambda e: e.used_s)
        total = sum(e.memory_bytes for e in warm)
        for number, entry in enumerate(warm):
            left = len(warm) - number
            over = total > self.limits.memory_bytes or left > self.limits.apps_max
            if entry.warmed is None or not (over or now_s - entry.used_s >= self.limits.idle_s):
                continue
            total -= entry.memory_bytes
            self._leave(entry.warmed.host)
            entry.warmed, entry.memory_bytes = None, 0
            if over:
                entry.why = "others were used more recently, and memory or count is bounded"
                entry.try_at_s = now_s + self.limits.idle_s
            else:
                entry.why = "not used for long"

    def _leave(self, host: HostLink) -> None:
        host.close()
        self._left.append(host)

    async def _end(self) -> None:
        """Wait for hosts that have nothing to do; others see their jobs to the end."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_S):
            while self._left:
                self._left = [host for host in self._left if not host.has_ended()]
                await trio.sleep(0.01)
        for host in self._left:
            host.leave()

    def _make_room(self) -> None:
        """Forget the entry that was not used for longest, when there are too many."""
        while len(self._entries) >= _ENTRIES_MAX:
            oldest = min(self._entries.values(), key=lambda e: e.used_s)
            if oldest.warmed is not None:
                self._leave(oldest.warmed.host)
            del self._entries[oldest.app]


def _memory_bytes(host: int, kind: str) -> int:
    """Return about what workers hold: a zygote's children share nearly all with it."""
    each = [tree_use([pid]).memory_bytes for pid in descendants(host)]
    return max(each, default=0) if kind == "zygote" else sum(each)


def _remove_left(folder: Path) -> None:
    """Remove folders of workers whose host is gone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.iterdir():
        try:
            fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            remove_tree(path)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            remove_tree(path)
        finally:
            os.close(fd)
