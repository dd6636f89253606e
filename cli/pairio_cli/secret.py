"""`--secret`: values that never stand on a command line, where others could read them, or in a
file of jobs."""

import os
from pathlib import Path
from typing import Any

from pairio._http import Api, part
from pairio.errors import PairioError

__all__ = ["check_asked", "file_secrets", "read_secrets", "secrets_again"]

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


def file_secrets(entry: Any, folder: Path, where: str) -> list[str]:
    """Return what `secrets` of a job in a file says as `--secret` takes it; paths are from the
    file's folder.

    Raises:
        PairioError: it is no such thing; says no value.
    """
    how = 'write secrets: {NAME: "@FILE"} or {NAME: env:VARIABLE};'
    how += " a value in the file would be read by whoever has the file"
    if not isinstance(entry, dict):
        raise PairioError(f"{where}: secrets are no names with places", how)
    found = []
    for name, source in entry.items():
        if not isinstance(source, str) or not source.startswith(("@", "env:")):
            shown = str(name)[:80]
            raise PairioError(f"{where}: secret {shown!r} names no place to read it from", how)
        if source.startswith("@"):
            source = f"@{folder / Path(source[1:]).expanduser()}"
        found.append(f"{name}={source}")
    return found


def check_asked(given: list[str], asked: set[str], who: str) -> None:
    """Refuse secrets of the command line that no job asks for: the name may be mistyped.

    Raises:
        PairioError: there is one.
    """
    for name in read_secrets(given):
        if name not in asked:
            known = ", ".join(sorted(asked)) or "none"
            raise PairioError(f"{who} asks for the secret {name!r}", f"asked for: {known}")


def secrets_again(
    api: Api, jobs: list[dict[str, Any]], given: list[str], command: str
) -> list[dict[str, str]]:
    """Return the secrets that each of these jobs asks for, to submit it again: nobody keeps those
    of a job that is over.

    Raises:
        PairioError: one is asked for and not given, or given and not asked for; says how to give
            it to `command`.
    """
    if not jobs:
        return []
    values, names = read_secrets(given), _names_asked(api, jobs)
    asked = {name for each in names for name in each}
    check_asked(given, asked, "none of the jobs")
    missing = sorted(asked - {*values})
    if missing:
        count = sum(not {*each} <= {*values} for each in names)
        jobs_ask = "1 job asks" if count == 1 else f"{count} jobs ask"
        raise PairioError(
            f"{jobs_ask} for the secret {', '.join(map(repr, missing))}, and none was given",
            "secrets are forgotten when a job is over; give them again: "
            + " ".join([command, *(f"--secret {name}=@FILE" for name in missing)]),
        )
    return [{name: values[name] for name in each} for each in names]


def _names_asked(api: Api, jobs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the names of the secrets that the processor of each job asks for."""
    from pairio._again import secret_names

    services = {str(job["serviceName"]) for job in jobs}
    asked = {s: api.call("GET", f"/api/v1/services/{part(s)}/apps")["apps"] for s in services}
    return secret_names(jobs, asked)


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
    raise PairioError(f"secret {name!r}: {file}: {why}", "name a file of text")


def _from_env(name: str, source: str) -> str:
    variable = source.removeprefix("env:")
    if variable not in os.environ:
        raise PairioError(f"secret {name!r}: no variable {variable!r} is set", "set it before")
    return os.environ[variable]
