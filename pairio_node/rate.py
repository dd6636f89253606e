"""So many units in a second, and some of them at once after a pause: bytes, frames, questions."""

import trio

__all__ = ["Rate"]


class Rate:
    """Lets through so many units in a second; who asks first is let through first. `at_once`: what
    may come after a pause, a second's worth unless given."""

    def __init__(self, per_s: float, at_once: float = 0.0) -> None:
        self._per_s, self._burst_s = per_s, (at_once or per_s) / per_s
        self._due_s = 0.0

    def take(self, units: float) -> float:
        """Take units; returns how long to wait first."""
        now_s = trio.current_time()
        self._due_s = max(self._due_s, now_s - self._burst_s) + units / self._per_s
        return self._due_s - now_s

    def try_take(self) -> bool:
        """Take one unit, unless that would take a wait."""
        due_s = self._due_s
        if self.take(1) > 0:
            self._due_s = due_s
            return False
        return True

    async def wait(self, units: float) -> None:
        """Take units; returns when they may be used."""
        wait_s = self.take(units)
        if wait_s > 0:
            await trio.sleep(wait_s)
