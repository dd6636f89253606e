"""`--secret`: values that never stand on a command line, where others could read them."""

import os
from pathlib import Path

from pairio.errors import PairioError

__all__ = ["read_secrets"]

_SIZE_BYTES_MAX = 1024 * 1024


def read_secrets(given: list[str]) -> dict[str, str]:
    """Return the secrets that `NAME=@FILE` and `NAME=env:VARIABLE` name.

    Raises:
        PairioError: another form, no such file or variable; says no value.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not name or not source.startswith(("@", "env:")):
            shown = name[:80] if equals else "..."
            raise PairioError(
                f"--secret {shown!r} names no place to read it from",
                f"write --secret {shown}=@FILE or {shown}=env:VARIABLE;"
                " a value on the command line could be read by others",
            )
        if name in found:
            raise PairioError(f"--secret {name!r} is given twice", "give each once")
        found[name] = _from_file(name, source[1:]) if source[0] == "@" else _from_env(name, source)
    return found


def _from_file(name: str, file: str) -> str:
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            data = opened.read(_SIZE_BYTES_MAX)
        return data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except UnicodeDecodeError:
        why = "it is no text"
    raise PairioError(f"--secret {name}: {file}: {why}", "name a file of text")


def _from_env(name: str, source: str) -> str:
    variable = source.removeprefix("env:")
    if variable not in os.environ:
        raise PairioError(f"--secret {name}: no variable {variable!r} is set", "set it before")
    return os.environ[variable]
