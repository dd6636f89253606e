"""How far a job is, told by the job. Standard library only: this runs inside jobs."""

import time

__all__ = ["report_progress"]

_PAUSE_S = 0.2
_TEXT_MAX = 200
_said_s = 0.0


def report_progress(fraction: float, text: str = "") -> None:
    """Say how far the job is, for those who wait for it: a line `[progress] 42.0% text` of its
    output. Cheap enough for every turn of a loop: at most five lines a second are written, and
    the one that says 1.

    Args:
        fraction: 0 to 1.
        text: what it does now, in a few words; cut after 200 characters.

    Example:
        >>> report_progress(0.42, "fitting")
        [progress] 42.0% fitting

    Raises:
        ValueError: the fraction is not from 0 to 1.
    """
    global _said_s
    if not 0 <= fraction <= 1:
        raise ValueError(f"progress is 0 to 1, not {fraction!r}")
    now_s = time.monotonic()
    if fraction < 1 and now_s - _said_s < _PAUSE_S:
        return
    _said_s = now_s
    words = " ".join(str(text).split())[:_TEXT_MAX]
    print(f"[progress] {100 * fraction:.1f}% {words}".rstrip(), flush=True)
