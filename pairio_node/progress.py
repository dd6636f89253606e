"""How far running jobs are, by their own word: the last percentage in the console of each, looked
at once a second. `[progress] 42.5% words` at the beginning of a line says it, as `report_progress`
of the SDK and any program can; else a bar as tqdm draws it (`42%|####`).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from pairio_node.runner.supervisor.console import ConsoleReader
from pairio_protocol.limits import PERMILLE_MAX

__all__ = ["ProgressReader", "permille_in"]

#: What a job has said before that is no news.
_TAIL_BYTES = 4096
_LOOK_S = 1.0
_SAID = re.compile(rb"[\r\n]\[progress\] +([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")
_DRAWN = re.compile(rb"[\r\n][^\r\n|%]{0,200}?\b([0-9]{1,3})%\|")


def permille_in(text: bytes, *, drawn: bool = True) -> int | None:
    """Return the last progress in a piece of console, in thousandths; with `drawn` that of a bar
    where nothing says it. None: there is none."""
    found = _SAID.findall(text) or (_DRAWN.findall(text) if drawn else [])
    permille = round(float(found[-1]) * 10) if found else None
    return None if permille is None or permille > PERMILLE_MAX else permille


class _Reader:
    """What was read of one console."""

    def __init__(self) -> None:
        self._total = 0
        self._says_it = False

    def look(self, path: Path) -> int | None:
        """Return the newest progress; None: no news."""
        try:
            reader = ConsoleReader(path)
        except OSError:  # its job has not begun, or is over
            return None
        try:
            total = reader.total
            if total == self._total:
                return None
            at, self._total = max(0, total - _TAIL_BYTES), total
            text = b"" if at else b"\n"
            while len(text) < 2 * _TAIL_BYTES:
                piece = reader.read(at)
                if not piece.data:
                    break
                text, at = text + piece.data, piece.next_offset
        finally:
            reader.close()
        self._says_it = self._says_it or _SAID.search(text) is not None
        return permille_in(text, drawn=not self._says_it)


class ProgressReader:
    """Looks at the consoles of the runs of this node. `running` gives them: (attempt, console);
    `tell` is told of news."""

    def __init__(
        self, running: Callable[[], Mapping[str, Path]], tell: Callable[[str, int], None]
    ) -> None:
        self._running = running
        self._tell = tell
        self._readers: dict[str, _Reader] = {}
        self._told: dict[str, int] = {}
        self._some = trio.Event()

    def begun(self) -> None:
        """A run has begun: there is something to look at."""
        self._some.set()

    async def run(self) -> None:
        """Look until cancelled; nothing wakes a node that runs nothing."""
        while True:
            if not self._running():
                self._some = trio.Event()
                await self._some.wait()
            await trio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once at each run that goes on."""
        consoles = dict(self._running())
        self._readers = {name: self._readers.get(name) or _Reader() for name in consoles}
        self._told = {name: told for name, told in self._told.items() if name in consoles}
        if not consoles:
            return
        found = await trio.to_thread.run_sync(self._looked, consoles)
        for name, permille in found.items():
            if permille != self._told.get(name, 0):
                self._told[name] = permille
                self._tell(name, permille)

    def _looked(self, consoles: Mapping[str, Path]) -> dict[str, int]:
        found = {name: self._readers[name].look(path) for name, path in consoles.items()}
        return {name: permille for name, permille in found.items() if permille is not None}
