"""Times as people write and read them."""

from datetime import datetime, timedelta

from pairio_cli.output import fail

__all__ = ["ago_or_iso", "clock", "clock_s", "minute"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def ago_or_iso(text: str, option: str) -> int:
    """Return the Unix time in ms of `2h` (ago) or of an ISO time (local unless it says its zone).

    Leaves with exit code 2 when it is neither.
    """
    count, unit = text[:-1], _UNITS.get(text[-1:])
    if unit is not None and count.isascii() and count.isdecimal() and len(count) < 7:
        when = datetime.now().astimezone() - timedelta(seconds=int(count) * unit)
        return int(when.timestamp() * 1000)
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError):
        fail(f"{option} is {text!r}", "use 2026-01-31T14:00, 2026-01-31, or 30m, 2h, 7d (ago)", 2)


def clock(unix_ms: int) -> str:
    """Return a Unix time in ms as people read it, in local time."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"


def clock_s(unix_s: float | None) -> str:
    """Return the same of a time in s; nothing where there is none."""
    return clock(int(unix_s * 1000)) if unix_s else ""


def minute(unix_s: float) -> str:
    """Return the same to the minute."""
    return clock(int(unix_s * 1000))[: -len(":00")]
