"""A bar that moves while a batch is waited for: in a notebook, or on a terminal's stderr."""

import sys
import time
from typing import Any

from pairio.client._base import BatchProgress

__all__ = ["ProgressBar"]

_WIDTH = 30
#: Not more often than that.
_PAUSE_S = 0.1


class ProgressBar:
    """Shows how far a batch is; says nothing where nobody looks (stderr is a file or a pipe)."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown_s = 0.0
        self._display: Any = None
        self._is_notebook = _is_notebook()
        self._is_terminal = not self._is_notebook and sys.stderr.isatty()

    def show(self, progress: BatchProgress, *, last: bool = False) -> None:
        """Show the present state, unless that was done a moment ago."""
        now = time.monotonic()
        if not last and now - self._shown_s < _PAUSE_S:
            return
        self._shown_s = now
        if self._is_notebook:
            self._show_html(progress)
        elif self._is_terminal:
            end = "\n" if last else ""
            sys.stderr.write(f"\r\x1b[K{bar(progress, now - self._began)}{end}")
            sys.stderr.flush()

    def _show_html(self, progress: BatchProgress) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found]

        html = HTML(progress._repr_html_())
        if self._display is None:
            self._display = display(html, display_id=True)
        else:
            self._display.update(html)


def bar(progress: BatchProgress, seconds: float) -> str:
    """Return the bar as a line of text."""
    filled = int(_WIDTH * progress.share) if progress.total else 0
    return f"[{'#' * filled}{'-' * (_WIDTH - filled)}] {progress}, {seconds:.0f} s"


def _is_notebook() -> bool:
    """Say whether the program runs in a notebook (and not in IPython on a terminal)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
