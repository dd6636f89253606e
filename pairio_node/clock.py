"""The node's clock: milliseconds that run on while a laptop sleeps (CLOCK_BOOTTIME)."""

import time

__all__ = ["Clock"]


class Clock:
    """`now_ms` for decisions, `unix_ms` for people and for expiry."""

    _clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now_ms(self) -> int:
        """Return milliseconds since the machine started, sleep included where the system tells."""
        return time.clock_gettime_ns(self._clock_id) // 1_000_000

    def unix_ms(self) -> int:
        """Return milliseconds since 1970 by the wall clock, which may jump."""
        return time.time_ns() // 1_000_000
