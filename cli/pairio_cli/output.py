"""What the commands print: data on stdout, the rest on stderr; and errors with their exit code.

Names, errors and output come from workers and other members: what is printed here as text goes
through `printable`, so that none of it does anything to a terminal. Bytes that are data (a file, a
console that is piped) stay as they are.

Exit codes: 0 done, 1 you can fix it (or the job failed), 2 usage, 3 bug or network, 4 timeout,
130 interrupted.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import click

from pairio_protocol.printable import printable

__all__ = [
    "INTERRUPTED",
    "as_json",
    "as_lines",
    "data",
    "elapsed_s",
    "fail",
    "finished",
    "guarded",
    "note",
    "short",
    "shorts",
    "table",
]

#: Exit code after Ctrl-C.
INTERRUPTED = 130
#: HTTP: the node failed, a gateway failed, nobody reachable has it, too late.
_NOT_THE_USERS = (500, 502, 503, 504)


#: When the command began.
_began_s = time.monotonic()


def data(text: str) -> None:
    """Print data (stdout)."""
    print(printable(text))


def note(text: str) -> None:
    """Print anything that is not data (stderr)."""
    print(printable(text), file=sys.stderr)


def finished(text: str) -> None:
    """Print what was done and how long it took (stderr): the last line of a command that acts."""
    note(f"{text} ({elapsed_s():.2f}s)")


def elapsed_s() -> float:
    """Return how long the command has run."""
    return time.monotonic() - _began_s


def as_json(value: Any, *, one_line: bool = False) -> None:
    """Print one JSON document, or one of those that come a line each. Within strings, where alone
    it can be, what is no printable character is escaped."""
    text = json.dumps(value, indent=None if one_line else 2, ensure_ascii=False)
    shown = "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)
    print(shown, flush=one_line)


def short(identifier: str | None) -> str:
    """Return the end of an id, which is enough to name it here."""
    return identifier[-10:] if identifier else "-"


def shorts(identifiers: Iterable[str]) -> dict[str, str]:
    """Return the ends of ids, as long as they must be to differ from each other."""
    names, size = set(identifiers), 10
    while len({name[-size:] for name in names}) < len(names):
        size += 1
    return {name: name[-size:] for name in names}


def as_lines(headers: list[str], rows: list[list[str]]) -> list[str]:
    """Return aligned columns, printable."""
    shown = [[" ".join(printable(cell).split("\n")) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(headers))]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in shown)
    return ["  ".join(row).rstrip() for row in padded]


def table(headers: list[str], rows: list[list[str]], empty: str = "") -> None:
    """Print aligned columns; `empty` is said when there are no rows."""
    for line in as_lines(headers, rows):
        print(line)
    if empty and not rows:
        note(empty)


def guarded(run: Callable[..., Any]) -> None:
    """Run a typer app to its end: no mistake of a user shows a traceback."""
    from pairio_cli.leftover import refuse_leftover

    refuse_leftover()  # before anything of the package `pairio` is imported
    global _began_s
    _began_s = time.monotonic()
    try:
        code = run(standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        note("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pairio"
        fail(error.format_message(), f"{command} --help", 2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _drop_output()
            fail("cannot write the output: no space left on the device", "make room there", 1)
        _fail_with(error)
    if code == INTERRUPTED:  # typer's way to say it
        note("interrupted")
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Let what is still to be written go nowhere, so that the end of the program says nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_with(error: Exception) -> None:
    """Leave with the words of an error; a bug says how to report it."""
    from pairio.errors import PairioError

    message = None  # of a pairio_node.errors.UserError, which is not imported here
    if not isinstance(error, BaseExceptionGroup):
        message = getattr(error, "message", None)

    if isinstance(error, PairioError):
        status = getattr(error, "status", 0)
        fail(str(error), error.hint, 3 if status in _NOT_THE_USERS else 1)
    if isinstance(message, str):
        fail(message, getattr(error, "hint", None), 1)
    if os.environ.get("PAIRIO_DEBUG"):
        raise error
    fail(
        f"a bug in pairio: {type(error).__name__}: {error}",
        "run again with PAIRIO_DEBUG=1 and report what it prints",
        3,
    )


def fail(message: str, hint: str | None, code: int) -> NoReturn:
    """Print an error and what to do, and leave with `code`."""
    context = click.get_current_context(silent=True)
    program = "pairio-node" if "node" in os.path.basename(sys.argv[0]) else "pairio"
    note(f"error: {message}")
    if hint is None and context is not None:
        hint = f"{context.command_path} --help shows what it takes"
    note(f"\nhint: {hint or f'{program} --help shows the commands and what they take'}")
    sys.exit(code)
