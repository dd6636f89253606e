"""`pairio get`, `verify`, `export`, `import`: results and what they rest on."""

import re
import sys
from collections.abc import Iterable, Iterator
from json import loads
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from pairio_cli.download import Bar, content_of, fetch_content, plain_name
from pairio_cli.output import as_json, data, fail, finished, note, short
from pairio_cli.shared import JobId, Json, ServiceOption, api, part
from pairio_protocol.figures import counted, size_text

__all__ = ["export", "get", "import_", "provenance", "verify"]

_CAR_FILE = ".car"
_FORMS = ("json", "dot", "in-toto")
_LONG_ID = re.compile(r"\b(?:baf[a-z2-7]{56}|12D3Koo[0-9A-Za-z]{40,48}|[0-9a-f]{64})\b")


# -- get ------------------------------------------------------------------------------------


def get(
    job_id: Annotated[
        str, typer.Argument(metavar="ID", help="A job, request or result; or the CID of content.")
    ],
    output: Annotated[
        str | None, typer.Argument(help="Name of the output; all if left out.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-o", help="File or folder to write; - is stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Get outputs of a job, or content. Example: pairio get ID output -o greeting.txt"""
    node = api()
    wanted = _wanted(node, job_id, output, service)
    is_file = output is not None and file is None and not _is_folder(node, wanted[0][0])
    if (is_file and not json) or file == Path("-"):
        if json:
            fail("--json and the bytes both want stdout", "name a file: -o PATH", 2)
        if len(wanted) > 1:
            fail(f"{job_id} has {len(wanted)} outputs", "name one of them, or a folder: -o DIR", 1)
        for chunk in content_of(node, wanted[0][0]):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    written = []
    for cid, target in _targets(wanted, file):
        size = fetch_content(node, cid, target, force=force)
        written.append({"path": str(target), "cid": cid, "size": size})
        if not json:
            data(str(target))
        finished(f"Wrote {size_text(size)} to {target}")
    if json:
        as_json({"written": written})


def _wanted(node: Any, name: str, output: str | None, service: str | None) -> list[tuple[str, str]]:
    """Return (CID, file name) of what is asked for."""
    if name.startswith(("bafkrei", "bafybei", "Qm")) and output is None:
        from pairio_protocol.cid import CidError, as_v1

        try:
            return [(as_v1(name), name)]
        except CidError as error:
            fail(str(error), "pairio job show ID names the content of a job", 1)
    result = node.call("GET", f"/api/v1/results/{part(name)}", None, {"serviceName": service})
    made = {one["name"]: (one["cid"], one["fileBaseName"]) for one in result["outputs"]}
    known = ", ".join(made) or "none"
    if output is None:
        if not made:
            said = f": {result['error']}" if result["error"] else ""
            fail(f"job {result['jobId']} {result['status']}{said}", "it has no outputs", 1)
        return list(made.values())
    if output not in made:
        fail(f"job {result['jobId']} has no output {output!r}", f"outputs: {known}", 1)
    return [made[output]]


def _is_folder(node: Any, cid: str) -> bool:
    from pairio_protocol.cid import RAW, parse_cid
    from pairio_protocol.unixfs import parse_node

    if parse_cid(cid).codec == RAW:
        return False
    block = b"".join(node.stream(f"/api/v1/blocks/{part(cid)}"))
    return parse_node(cid, block).is_directory


def _targets(wanted: list[tuple[str, str]], file: Path | None) -> Iterator[tuple[str, Path]]:
    """Return where each goes: by its own name here or in the folder named, or by the name given."""
    names = [plain_name(name) for _, name in wanted]
    odd = [name for name in names if not name.isprintable()]
    hidden = [name for name in names if name.startswith(".")]
    if hidden and file is None:  # in a home folder a shell may read it
        fail(f"{hidden[0]!r} is a hidden file", "name a file or folder of your own: -o PATH", 1)
    if odd and not (len(wanted) == 1 and file is not None):  # it would go to a terminal
        fail(f"{odd[0]!r} holds what cannot be printed", "name a file of your own: -o PATH", 1)
    if len(set(names)) < len(names):
        fail("several outputs have one file name", "get them one by one: pairio get ID OUTPUT", 1)
    folder = file if file is not None else Path()
    if len(wanted) == 1 and file is not None and not file.is_dir():
        yield wanted[0][0], file
        return
    if file is not None and not file.is_dir():
        try:
            file.mkdir()
        except OSError as error:
            fail(f"cannot write {file}: {error.strerror}", "name a folder that you may write", 1)
    for (cid, _), name in zip(wanted, names, strict=True):
        yield cid, folder / name


# -- verify -----------------------------------------------------------------------------------


def verify(
    what: Annotated[
        str, typer.Argument(metavar="ID|FILE.car", help="A job, request or result; or an export.")
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: what is not here is a break.")
    ] = False,
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Verify a result and all it rests on; a file without a node. Example: pairio verify ID"""
    if what.endswith(_CAR_FILE) or Path(what).is_file():
        steps = _verified_file(Path(what))
    else:
        query = {"serviceName": service, "offline": "true" if offline else None}
        steps = api().lines(f"/api/v1/results/{part(what)}/verify", query)
    checks, notes = _shown(steps, json)
    if not checks:
        fail("nothing was checked", "run it again", 3)
    last = checks[-1]
    is_right = bool(last["ok"]) and last["check"] == "verified"
    if json:
        found = {"jobId": last["jobId"], "resultCid": last["resultCid"]}
        as_json({"verified": is_right, **found, "checks": checks, "notes": notes})
    if not is_right:
        for words in notes:
            note(f"not fetched: {words}")
        words = f"the chain breaks at {last['check']}: {last['words']}"
        fail(words, last["hint"] or "run it again", 1)


def _shown(steps: Iterable[Any], json: bool) -> tuple[list[Any], list[str]]:
    """Print checks as they come; return them, and what could not be fetched."""
    checks, notes, bar, about = [], [], Bar("verify"), ""
    for step in steps:
        if "progress" in step:
            hashed = step["progress"].get("bytes")
            bar.say("fetching" if hashed is None else f"hashed {size_text(hashed)}")
        elif "note" in step:
            notes.append(_plain(step["note"]))
        else:
            checks.append({**step, "words": _plain(step["words"])})
            if not json:
                bar.clear()
                about = _show_check(checks[-1], about)
    bar.clear()
    return checks, notes


def _plain(words: Any) -> str:
    """Return words without what would do things to a terminal: a job names itself as it likes."""
    return "".join(c if c.isprintable() else "?" for c in str(words))


def _show_check(step: dict[str, Any], about: str) -> str:
    """Print a check; return the result that it was about."""
    cid = step["resultCid"] or about
    if cid and cid != about and step["check"] != "verified":
        data(f"result {short(cid)}" + (f" of job {short(step['jobId'])}" if step["jobId"] else ""))
    by = ", ".join(f"{b['member'] or 'no member'} ({short(b['peerId'])})" for b in step["by"])
    state = "BREAK" if not step["ok"] else "ok" if step["proved"] else "named"
    words = _LONG_ID.sub(lambda m: f"…{short(m[0])}", step["words"])
    data(f"  {state:<6}{step['check']:<10}{words}" + (f", by {by}" if by else ""))
    return str(cid)


def _verified_file(path: Path) -> Iterator[Any]:
    """Yield the checks of an export, as the node would; nothing but the file is needed."""
    from pairio_cli.carfile import CarFile
    from pairio_protocol.errors import DecodeError
    from pairio_protocol.verify import Check, verify

    try:
        with CarFile(path) as car:
            for step in verify(car.evidence(), car.block):
                if isinstance(step, Check):
                    yield step.plain()
                else:
                    yield {"progress": {"blocks": step.blocks, "bytes": step.size_bytes}}
    except DecodeError as error:
        hint = "get the file again from whoever exported it"
        yield Check("file", False, f"{path}: {error}", hint=hint).plain()
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", "name a file that pairio export wrote", 1)


def provenance(
    job_id: JobId,
    form: Annotated[
        str,
        typer.Option("--format", click_type=click.Choice(_FORMS), help="in-toto: one a line."),
    ] = "json",
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Say where a result comes from. Example: pairio job provenance ID --format dot"""
    if json and form != "json":
        fail(f"--json and --format {form} are two forms", "leave one of them out", 2)
    path = f"/api/v1/results/{part(job_id)}/provenance"
    chunks = api().stream(path, {"serviceName": service, "format": form})
    text = b"".join(chunks).decode()
    as_json(loads(text)) if form == "json" else data(text.rstrip("\n"))


# -- files ------------------------------------------------------------------------------------


def export(
    job_id: JobId,
    file: Annotated[Path, typer.Option("-o", help="File to write, such as result.car.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Export a result and all it rests on. Example: pairio export ID -o result.car"""
    if file.exists() and not force:
        fail(f"{file} exists", "choose another -o, or add --force", 1)
    node, path, query = api(), f"/api/v1/results/{part(job_id)}", {"serviceName": service}
    bar, notes = Bar(file.name), []
    for step in node.lines(f"{path}/bring", query):
        bar.say("fetching")
        notes += [step["note"]] if "note" in step else []
    bar.clear()
    for words in notes:
        note(f"not fetched: {words}")
    partial, size = file.with_name(f".{file.name}.part"), 0
    chunks = iter(node.stream(f"{path}/export", query))
    try:
        with partial.open("wb") as target:
            for chunk in chunks:
                size += target.write(chunk)
                bar.say(f"{file.name}  {size_text(size)}")
        partial.replace(file)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}", "name a file that you may write", 1)
    finally:
        partial.unlink(missing_ok=True)
        bar.clear()
    as_json({"file": str(file), "size": size, "notFetched": notes}) if json else data(str(file))
    finished(
        f"Wrote {size_text(size)}; pairio verify {file} needs no node, pairio import takes it in"
    )


def import_(
    file: Annotated[Path, typer.Argument(help="A CAR: of pairio export, or of ipfs dag export.")],
    json: Json = False,
) -> None:
    """Take a file in that was exported. Example: pairio import result.car"""
    try:
        with file.open("rb") as source:
            found = api().upload(source, "/api/v1/import")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", "name a file that pairio export wrote", 1)
    if json:
        as_json(found)
    else:
        for name in [r["resultCid"] for r in found["results"][:1]] or found["roots"]:
            data(name)
    finished(f"Imported {counted(found['blocks'], 'block')}, {size_text(found['size'])}")
    refused = [row for row in found["results"] if not row["counts"]]
    if found["serviceId"] is None:
        note("It is content only: pairio get CID writes it to a file")
    elif found["serviceName"] is None:
        note(f"This node is not in service {short(found['serviceId'])}: it is kept as content only")
        note(f"What it claims is verified with: pairio verify {file}")
    elif refused:
        first = refused[0]
        words = f"result {first['resultCid']} does not count here: {first['why']}"
        fail(words, f"pairio verify {file} shows where it breaks", 1)
    else:
        count = len(found["results"])
        verb = "counts" if count == 1 else "count"
        note(f"{counted(count, 'result')} {verb} in {found['serviceName']!r} from now on")
