"""`pairio-node logs`: the node's own log, also while no node runs."""

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, fail, note

__all__ = ["logs"]

_LOOK_S = 0.2


def logs(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="And what comes.")] = False,
    lines: Annotated[int, typer.Option("-n", min=0, help="So many lines, the newest.")] = 100,
    path: Annotated[bool, typer.Option("--path", help="Only say where the file is.")] = False,
    home: Annotated[Path | None, typer.Option(help="The home; default PAIRIO_HOME.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with -f a line a document.")
    ] = False,
) -> None:
    """Show what the node on this machine did. Example: pairio-node logs -f"""
    from pairio._http import default_home
    from pairio_node.nodelog import FILES, LOG_FILE

    file = (home or default_home()) / LOG_FILE
    if path:
        as_json({"file": str(file)}) if json else data(str(file))
        return
    older = [file.with_name(f"{LOG_FILE}.{number}") for number in range(FILES - 1, 0, -1)]
    newest: deque[str] = deque(maxlen=lines)
    for each in older:
        newest.extend(_lines_of(each))
    opened = _opened(file)
    if opened is None:
        fail(f"there is no {file}", "no node has run on this home: pairio-node run", 1)
    with opened:
        newest.extend(line.rstrip("\n") for line in opened)
        if json and not follow:
            as_json({"file": str(file), "lines": list(newest)})
            return
        show = (lambda line: as_json(line, one_line=True)) if json else data
        for line in newest:
            show(line)
        if not follow:
            note(f"{file}")
            return
        for line in _new_lines(file, opened):
            show(line)


def _lines_of(file: Path) -> Iterator[str]:
    opened = _opened(file)
    if opened is not None:
        with opened:
            for line in opened:
                yield line.rstrip("\n")


def _opened(file: Path) -> Any:
    try:
        return file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", "it is its owner's: use the same user", 1)


def _new_lines(file: Path, opened: Any) -> Iterator[str]:
    """Yield lines as they come, also after the file was rotated away."""
    left = ""
    try:
        while True:
            text = opened.read()
            *whole, left = (left + text).split("\n")
            yield from whole
            if text:
                continue
            if _is_another(file, opened):
                left += opened.read()  # what came last before it was rotated
                before, opened = opened, _opened(file) or opened
                if before is not opened:
                    before.close()
            else:
                time.sleep(_LOOK_S)
    finally:
        opened.close()


def _is_another(file: Path, opened: Any) -> bool:
    try:
        return os.stat(file).st_ino != os.fstat(opened.fileno()).st_ino
    except FileNotFoundError:
        return False  # it is being rotated
