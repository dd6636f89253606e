"""What the commands print: data on stdout, the rest on stderr; and errors with their exit code.

Exit codes: 0 done, 1 you can fix it (or the job failed), 2 usage, 3 bug or network, 4 timeout.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from pairio.errors import PairioError

__all__ = ["as_json", "data", "fail", "guarded", "note", "short", "table"]


def data(text: str) -> None:
    """Print data (stdout)."""
    print(text)


def note(text: str) -> None:
    """Print anything that is not data (stderr)."""
    print(text, file=sys.stderr)


def as_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def short(identifier: str | None) -> str:
    """Return the end of an id, which is enough to name it here."""
    return identifier[-10:] if identifier else "-"


def table(headers: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns."""
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def guarded(main: Callable[[], None]) -> None:
    """Run a command line: a user's mistake never shows a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        note("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PairioError as error:
        fail(str(error), error.hint, 1)
    except Exception as error:
        user_message = getattr(error, "message", None)
        if user_message is not None:  # pairio_node.errors.UserError, not imported here
            fail(user_message, getattr(error, "hint", None), 1)
        if os.environ.get("PAIRIO_DEBUG"):
            raise
        fail(
            f"a bug in pairio: {type(error).__name__}: {error}",
            "run again with PAIRIO_DEBUG=1 and report what it prints",
            3,
        )


def fail(message: str, hint: str | None, code: int) -> None:
    """Print an error and leave with `code`."""
    note(f"error: {message}")
    if hint:
        note(f"\nhint: {hint}")
    sys.exit(code)
