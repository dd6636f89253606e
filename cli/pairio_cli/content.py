"""`pairio content`: files and folders of this machine as content of the node."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, finished, note, table
from pairio_cli.shared import Json, api, new_typer, part
from pairio_protocol.figures import counted, size_text

__all__ = ["add_input", "content_app"]

content_app = new_typer("Files and folders as content.")


def add_input(node: Any, path: Path, nocopy: bool) -> dict[str, Any]:
    """Add a file or folder, with its bytes or by reference; returns `{cid, size, ...}`."""
    from pairio._upload import add_path, add_reference

    if not nocopy:
        return add_path(node, path)
    added = add_reference(node, path, _say_progress if sys.stderr.isatty() else None)
    if added["before"]:
        jobs = len(added["dependents"])
        needed = f"; known here as an input of {counted(jobs, 'job')}" if jobs else ""
        note(
            f"warning: {added['path']} has changed since it was added last: content"
            f" {added['before']} is gone from this node{needed}"
        )
    return added


def _say_progress(read_bytes: int, is_over: bool) -> None:
    end = "\r\x1b[K" if is_over else ""
    print(f"\rhashed {read_bytes / 1e9:.2f} GB{end}", end="", file=sys.stderr, flush=True)


@content_app.command("add")
def content_add(
    path: Annotated[str, typer.Argument(metavar="PATH", show_default=False)],
    nocopy: Annotated[
        bool, typer.Option("--nocopy", help="Hash it where it lies; copy nothing.")
    ] = False,
    service: Annotated[
        str | None, typer.Option(help="Let the members of this service have it.")
    ] = None,
    json: Json = False,
) -> None:
    """Add a file or folder; print its CID. Example: pairio content add data/ --nocopy"""
    from pairio.errors import PairioError

    if not path or not Path(path).exists():  # "" would be the folder that this runs in
        raise PairioError(f"there is no {path!r}", "give a file or folder of this machine")
    node = api()
    added = add_input(node, Path(path), nocopy)
    if service is not None:
        node.call("POST", f"/api/v1/services/{part(service)}/content", {"cid": added["cid"]})
    as_json(added) if json else data(added["cid"])
    finished(f"Added {size_text(added['size'])}")


@content_app.command("refs")
def content_refs(json: Json = False) -> None:
    """List files and folders that were added without a copy. Example: pairio content refs"""
    found = api().call("GET", "/api/v1/content/references")["references"]
    if json:
        as_json(found)
        return
    rows = [
        [r["path"], r["type"], str(r["size"]), r["state"], str(len(r["dependents"])), r["cid"]]
        for r in found
    ]
    headers = ["PATH", "TYPE", "BYTES", "STATE", "JOBS", "CID"]
    table(headers, rows, "nothing was added without a copy: pairio content add PATH --nocopy")
    if any(r["state"] == "changed" for r in found):
        note("\nhint: what has changed is not served any more; add it again")


@content_app.command("forget")
def content_forget(path: Path, json: Json = False) -> None:
    """Serve a file or folder no more; it stays as it is. Example: pairio content forget data/"""
    query = {"path": str(path.absolute())}
    gone = api().call("DELETE", "/api/v1/content/references", None, query)
    if json:
        as_json(gone)
    else:
        for cid in gone["cids"]:
            data(cid)
    things = counted(len(gone["cids"]), "file or folder", "files or folders")
    finished(f"Not served any more: {things}")
