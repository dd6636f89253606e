"""`pairio service`: changes that several admins sign, and the log of all changes."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli.admins import done
from pairio_cli.output import as_json, data, fail, finished, note, short
from pairio_cli.shared import Json, Service, api, part, people, service_path
from pairio_cli.times import clock
from pairio_protocol.figures import counted

__all__ = ["add_proposal_commands"]

_FILE_BYTES_MAX = 256 * 1024
_LOG_BYTES_MAX = 512 * 1024 * 1024
_FileOption = Annotated[
    Path | None, typer.Option("--file", help="A file that goes from admin to admin.")
]
_Id = Annotated[str | None, typer.Argument(metavar="ID", help="Its id, or the end of it.")]


def _show(name: str, proposal: dict[str, Any]) -> None:
    fits = "" if proposal["fits"] else ": does not fit the list any more"
    data(f"{proposal['id']}{fits}")
    for words in proposal["does"]:
        data(f"  {words}")
    if proposal["cuts"]:
        logs = counted(proposal["cuts"], "log")
        data(f"  counts {logs} up to where they were when it was proposed")
    data(f"  proposed by: {people([proposal['proposedBy']])}, {clock(proposal['issuedUnixMs'])}")
    data(f"  signed by: {people(proposal['signedBy'])}")
    if not proposal["fits"]:
        data(f"  made anew with: pairio service propose {name} --renew {short(proposal['id'])}")
        return
    data(f"  missing: {people(proposal['missing'])}")
    data(f"  {proposal['have']} of {proposal['needed']} signatures")
    if proposal["neededAfter"] is not None:
        have, needed = proposal["haveAfter"], proposal["neededAfter"]
        data(f"  {have} of {needed} signatures of the new admins")


def proposals(name: Service, json: Json = False) -> None:
    """List changes that wait for signatures. Example: pairio service proposals lab"""
    found = api().call("GET", service_path(name, "proposals"))["proposals"]
    if json:
        as_json(found)
        return
    for proposal in found:
        _show(name, proposal)
    if not found:
        note("No change waits for signatures")


def propose(
    name: Service,
    proposal: _Id = None,
    file: _FileOption = None,
    renew: Annotated[
        str | None, typer.Option("--renew", metavar="ID", help="Propose this one anew.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a proposal to a file, or make a stale one anew. Any act of an admin is a proposal when
    others have to sign it. Example: pairio service propose lab --file change.json"""
    if (file is None) == (renew is None):
        fail("give --file FILE or --renew ID", "pairio service proposals lists what waits", 2)
    if renew is not None:
        made = api().call("POST", service_path(name, f"proposals/{part(renew)}/renew"))
        done(made, json, "Done: no further signature was needed")
        return
    assert file is not None
    found = api().call("POST", service_path(name, "proposals/look"), {"id": proposal or ""})
    _write(file, found)
    as_json(found) if json else data(found["id"])
    finished(f"Wrote {file}; another admin signs it: pairio service sign {name} --file {file.name}")


def sign(
    name: Service,
    proposal: _Id = None,
    file: _FileOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    json: Json = False,
) -> None:
    """Sign a change that another admin proposed. With --file the signature is added to the file;
    what is complete takes effect. Example: pairio service sign lab"""
    body = {"id": proposal or "", "data": _read(file) if file is not None else None}
    if sys.stdin.isatty() and not yes:
        _show(name, api().call("POST", service_path(name, "proposals/look"), body))
        if not typer.confirm("Sign it?", err=True):
            fail("not signed", None, 1)
    made = api().call("POST", service_path(name, "proposals/sign"), body)
    if file is not None:
        _write(file, {"does": _read_words(file), "data": made["data"], "id": made["signed"]})
    waiting = made["proposal"]
    if json:
        as_json(made)
    else:
        data(made["signed"])
    if waiting is None:
        finished("Signed by enough admins: the change has taken effect")
        if file is not None:
            note(
                f"Give {file} back: the others take it with pairio service sign {name} --file FILE"
            )
    else:
        finished(f"Signed; it waits for more of: {people(waiting['missing'])}")


def withdraw(
    name: Service, proposal: Annotated[str, typer.Argument(metavar="ID")], json: Json = False
) -> None:
    """Drop a proposal on this node; others keep it. Example: pairio service withdraw lab ID"""
    made = api().call("DELETE", service_path(name, f"proposals/{part(proposal)}"))
    as_json(made) if json else data(made["withdrawn"])
    finished("Dropped here; signatures that were given to others stay with them")


# -- files --------------------------------------------------------------------------------


def _read_json(file: Path, limit_bytes: int) -> dict[str, Any]:
    try:
        with file.open("rb") as source:
            raw = source.read(limit_bytes + 1)
        if len(raw) > limit_bytes:
            fail(
                f"{file} is larger than {limit_bytes} bytes", "name the file that you were given", 1
            )
        found = json_module.loads(raw)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", "name the file that you were given", 1)
    except (ValueError, RecursionError):
        fail(f"{file} is no JSON", "name the file that you were given", 1)
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    found = _read_json(file, _FILE_BYTES_MAX)
    if found.get("type") != "pairio/proposal" or not isinstance(found.get("data"), str):
        fail(f"{file} holds no proposal", "make one: pairio service propose NAME --file FILE", 1)
    return str(found["data"])


def _read_words(file: Path) -> Any:
    return _read_json(file, _FILE_BYTES_MAX).get("does")


def _write_json(file: Path, document: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.part")
    try:
        partial.write_text(json_module.dumps(document, indent=2, ensure_ascii=False) + "\n")
        partial.replace(file)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}", "name a file that you may write", 1)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: Path, proposal: dict[str, Any]) -> None:
    document = {key: proposal[key] for key in ("id", "does", "data")}
    _write_json(file, {"type": "pairio/proposal", **document})


# -- the log ------------------------------------------------------------------------------


def _tell(log: dict[str, Any]) -> None:
    for entry in log["entries"]:
        fate = {"counts": "", "lost": "  LOST", "over": "  lost, signed over"}[entry["fate"]]
        when = clock(entry["issuedUnixMs"])
        data(f"{entry['epoch']:>4}  {when}  signed by {people(entry['signedBy'])}{fate}")
        for words in entry["does"]:
            data(f"      {words}")
        if entry["cuts"]:
            data(f"      counts {counted(entry['cuts'], 'log')} up to a cut")
        for cid in entry["over"]:
            data(f"      signs over the branch that ends in {cid}")
    data(f"head: {log['head']}")
    for cid in log["losingHeads"]:
        data(f"a branch lost, and what it took away stays taken: {cid}")


def log(
    name: Service,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write it to a file that anybody can verify.")
    ] = None,
    json: Json = False,
) -> None:
    """Show who changed what, when, signed by whom. Example: pairio service log lab"""
    query = {"changes": "true"} if export is not None else {}
    found = api().call("GET", service_path(name, "log"), None, query)
    if export is not None:
        _write_json(export, found)
        finished(f"Wrote {export}; pairio service verify-log {export} needs no node")
        return
    as_json(found) if json else _tell(found)


def verify_log(file: Annotated[Path, typer.Argument(metavar="FILE")], json: Json = False) -> None:
    """Verify an exported log without a node. Example: pairio service verify-log lab.json"""
    try:
        from pairio_protocol.errors import DecodeError
        from pairio_protocol.history import history, read_history
    except ModuleNotFoundError as error:
        fail(f"verifying needs the package {error.name}", "install pairio with its extra: node", 1)
    import base64

    found = _read_json(file, _LOG_BYTES_MAX)
    if found.get("type") != "pairio/service-log" or not isinstance(found.get("changes"), list):
        fail(f"{file} is no exported log", "make one: pairio service log NAME --export FILE", 1)
    try:
        chain = read_history(base64.b64decode(text, validate=True) for text in found["changes"])
    except (DecodeError, ValueError, TypeError) as error:
        fail(f"{file} does not verify: {error}", "do not trust it; ask another member", 1)
    for key, true in (("serviceId", chain.service), ("head", chain.head)):
        if found.get(key) != true:
            fail(f"{file} says {key} {found.get(key)!r}; its changes make {true}", None, 1)
    told: dict[str, Any] = {
        "serviceId": chain.service,
        "serviceName": chain.now.name,
        "epoch": chain.epoch,
        "head": chain.head,
        "losingHeads": chain.losing_heads(),
        "entries": history(chain),
    }
    as_json(told) if json else _tell(told)
    finished(f"Verified {counted(len(told['entries']), 'change')} of service {chain.service}")
    note("Its id names the first change; compare it, and the head, with a member's you trust")


def add_proposal_commands(services: typer.Typer) -> None:
    """Add the commands to `pairio service`."""
    services.command("proposals")(proposals)
    services.command("propose")(propose)
    services.command("sign")(sign)
    services.command("withdraw")(withdraw)
    services.command("log")(log)
    services.command("verify-log")(verify_log)
