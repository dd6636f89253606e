"""Commands: what anybody may read, of this node and of a service."""

from typing import Annotated

import click
import typer

from pairio_cli.admins import done
from pairio_cli.output import as_json, data, finished, note, short, table
from pairio_cli.shared import Json, Service, ServiceOption, api, part, service_path
from pairio_cli.times import clock
from pairio_protocol.figures import counted

__all__ = ["publish", "published", "service_policy", "unpublish"]

_What = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or the CID of content.")]
_NOT_UNSAID = "It cannot be unsaid: whoever has read it may keep it and pass it on"


def publish(what: _What, service: ServiceOption = None, json: Json = False) -> None:
    """Let anybody read a job's result, or content. Example: pairio publish ID"""
    made = api().call("POST", "/api/v1/published", {"id": what, "serviceName": service})
    if json:
        as_json(made)
        return
    data(made.get("result") or made["id"])
    if not made["changed"]:
        note("Nothing to do: it is public already")
        return
    told = (
        "its definition, result, outputs and console" if made["kind"] == "result" else "all of it"
    )
    note(f"{_NOT_UNSAID}. To stop serving it: pairio unpublish {short(made['id'])}")
    blocks = counted(made["blocks"], "block")
    finished(f"Anybody who reaches this node may read {told} ({blocks}), by CID")


def unpublish(what: _What, json: Json = False) -> None:
    """Serve something to strangers no more. Example: pairio unpublish ID"""
    made = api().call("DELETE", f"/api/v1/published/{part(what)}")
    if json:
        as_json(made)
        return
    finished(
        f"This node gives {short(made['id'])} to strangers no more; what they have stays theirs"
    )


def published(json: Json = False) -> None:
    """List what this node lets anybody read. Example: pairio published"""
    found = api().call("GET", "/api/v1/published")
    if json:
        as_json(found)
        return
    rows = [
        [entry["id"], entry["kind"], str(entry["blocks"]), clock(entry["sinceUnixMs"])]
        for entry in found["published"]
    ]
    rows += [[s["serviceName"], "results of the service", "", ""] for s in found["services"]]
    table(["WHAT", "KIND", "BLOCKS", "SINCE"], rows, "Nothing here may be read by strangers")


def service_policy(
    name: Service,
    results: Annotated[
        str | None,
        typer.Option(
            click_type=click.Choice(["public", "members"]), help="Who may read what jobs made."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show or set who may read results. Example: pairio service policy lab --results public"""
    if results is None:
        found = api().call("GET", service_path(name, "policy"))
        as_json(found) if json else data(f"results: {found['results']}")
        return
    made = api().call("POST", service_path(name, "policy"), {"results": results})
    who = "anybody" if results == "public" else "members only"
    done(made, json, f"What jobs of {made['serviceName']!r} made may be read by {who}")
    if results == "public" and made["changed"]:
        note(f"{_NOT_UNSAID}. Job definitions with their parameters are part of it; inputs are not")
