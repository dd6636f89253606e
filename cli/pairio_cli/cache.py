"""Commands: what content lies on the node, why, and what is to stay."""

from datetime import datetime
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, finished, note, table
from pairio_cli.shared import Json, ServiceOption, api, new_typer, part

__all__ = ["cache_app"]

cache_app = new_typer("What content lies on the node, and what is to stay.")

_Name = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, or a CID.")]


def _size(count: int) -> str:
    """Return bytes as people read them."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


@cache_app.command("stats")
def cache_stats(json: Json = False) -> None:
    """Show how much is here, why, and what was counted. Example: pairio cache stats"""
    found = api().call("GET", "/api/v1/cache")
    if json:
        as_json(found)
        return
    data(
        f"{_size(found['usedBytes'])} of {_size(found['quotaBytes'])} used,"
        f" {_size(found['roomBytes'])} free; {found['blocks']} blocks"
    )
    if found["full"]:
        data("full: no job begins here until there is room")
    table(["WHY", "SIZE"], [[why, _size(size)] for why, size in found["byReason"].items()])
    data(f"pins: {found['pins']}, promised copies: {found['promises']}")
    counted = ", ".join(f"{name} {count}" for name, count in sorted(found["counters"].items()))
    data(counted.replace("_", " "))


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
            _size(root["sizeBytes"]),
            f"{datetime.fromtimestamp(root['timestampUsedSec']):%Y-%m-%d %H:%M}",
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
    finished(f"kept until `pairio cache unpin`: {len(made['cids'])} files or folders")


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
            f"{datetime.fromtimestamp(pin['timestampPinnedSec']):%Y-%m-%d %H:%M}",
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
    finished(f"{did} {_size(done['freedBytes'])} of {_size(done['usedBytesBefore'])}")
    if not done["freedBytes"] and not everything:
        note("it is below 80 % of the quota, or all of it must stay; see --all, pairio cache stats")
