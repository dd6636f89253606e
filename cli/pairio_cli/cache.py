"""Commands: what content lies on the node, why, and what is to stay."""

from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, finished, note, table
from pairio_cli.shared import Json, ServiceOption, api, new_typer, part
from pairio_cli.times import minute
from pairio_protocol.figures import counted, size_text

__all__ = ["cache_app"]

cache_app = new_typer("What content lies on the node, and what is to stay.")

_Name = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, or a CID.")]


@cache_app.command("stats")
def cache_stats(json: Json = False) -> None:
    """Show how much is here, why, and what was counted. Example: pairio cache stats"""
    found = api().call("GET", "/api/v1/cache")
    if json:
        as_json(found)
        return
    data(
        f"{size_text(found['usedBytes'])} of {size_text(found['quotaBytes'])} used,"
        f" {size_text(found['roomBytes'])} free; {counted(found['blocks'], 'block')}"
    )
    if found["full"]:
        data("full: no job begins here until there is room")
    table(["WHY", "SIZE"], [[why, size_text(size)] for why, size in found["byReason"].items()])
    data(f"pins: {found['pins']}, promised copies: {found['promises']}")
    counters = ", ".join(f"{name} {count}" for name, count in sorted(found["counters"].items()))
    data(counters.replace("_", " "))


@cache_app.command("ls")
def cache_ls(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many to show.")] = 100,
    json: Json = False,
) -> None:
    """List what is here, why it stays, and when it was last used. Example: pairio cache ls"""
    found = api().call("GET", "/api/v1/cache/roots", None, {"limit": limit})
    if json:
        as_json(found)
        return
    rows = [
        [
            root["cid"],
            size_text(root["sizeBytes"]),
            minute(root["timestampUsedSec"]),
            ", ".join(root["keptBecause"]) or "-",
            root["what"],
        ]
        for root in found["roots"]
    ]
    table(["CID", "SIZE", "LAST USED", "STAYS FOR", "WHAT"], rows, "nothing is here")
    if found["count"] > len(rows):
        note(f"{found['count'] - len(rows)} more: --limit")


@cache_app.command("pin")
def cache_pin(name: _Name, service: ServiceOption = None, json: Json = False) -> None:
    """Keep a job's result, or content by CID, until it is unpinned.
    Example: pairio cache pin ID"""
    made = api().call("POST", "/api/v1/cache/pins", {"name": name, "serviceName": service})
    if json:
        as_json(made)
        return
    data(made["name"])
    kept = counted(len(made["cids"]), "file or folder", "files or folders")
    finished(f"kept until `pairio cache unpin`: {kept}")


@cache_app.command("unpin")
def cache_unpin(name: _Name, json: Json = False) -> None:
    """Let go what was pinned, when its turn comes. Example: pairio cache unpin ID"""
    gone = api().call("DELETE", f"/api/v1/cache/pins/{part(name)}")
    if json:
        as_json(gone)
        return
    data(gone["name"])
    finished("not pinned any more")


@cache_app.command("pins")
def cache_pins(json: Json = False) -> None:
    """List the pins. Example: pairio cache pins"""
    found = api().call("GET", "/api/v1/cache/pins")
    if json:
        as_json(found)
        return
    rows = [
        [
            pin["name"],
            pin["kind"],
            pin["serviceName"] or "-",
            minute(pin["timestampPinnedSec"]),
        ]
        for pin in found["pins"]
    ]
    table(["PIN", "KIND", "SERVICE", "SINCE"], rows, "nothing is pinned")


@cache_app.command("gc")
def cache_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All that nobody needs, not only down to 80 % of the quota."),
    ] = False,
    json: Json = False,
) -> None:
    """Let go what nobody needs, the least recently used first.
    Example: pairio cache gc --dry-run"""
    body = {"dryRun": dry_run, "everything": everything}
    done: dict[str, Any] = api().call("POST", "/api/v1/cache/gc", body)
    if json:
        as_json(done)
        return
    for root in done["roots"]:
        data(f"{root['cid']}  {root['what']}")
    did = "would free" if dry_run else "freed"
    finished(f"{did} {size_text(done['freedBytes'])} of {size_text(done['usedBytesBefore'])}")
    if not done["freedBytes"] and not everything:
        note("it is below 80 % of the quota, or all of it must stay; see --all, pairio cache stats")
