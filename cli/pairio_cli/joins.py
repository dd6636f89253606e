"""Commands: invite, join, link a device, requests, offers, leave."""

import sys
import time
from typing import Annotated, Any

import typer

from pairio_cli.output import INTERRUPTED, as_json, data, fail, finished, note, short, table
from pairio_cli.services import service_app
from pairio_cli.shared import Json, Service, api, part, seconds
from pairio_cli.times import clock, minute

__all__ = ["join"]

_LOOK_S = 20.0
_TIMEOUT = 4  # exit code
Roles = Annotated[str, typer.Option(help="Comma list of admin, submit, compute, read.")]
RequestId = Annotated[str, typer.Argument(help="As `pairio service requests` shows it.")]
Expires = Annotated[str, typer.Option(help="Such as 30m, 12h, 7d.")]


def _show_link(made: dict[str, Any], json: bool) -> None:
    if json:
        as_json({key: value for key, value in made.items() if key != "qr"})
        return
    data(made["link"])
    note(f"words: {made['words']} (read them out: whoever joins sees the same)")
    if sys.stderr.isatty():
        note(made["qr"])


def _note_proposal(made: dict[str, Any], service: str) -> None:
    """Say that further admins have to sign, and how."""
    waiting = made.get("proposal")
    if waiting is not None:
        note(f"It waits for further admins: pairio service sign {service} {short(waiting['id'])}")


def _until(made: dict[str, Any]) -> str:
    if made["expiresUnixMs"] is None:
        return ""
    return f", until {minute(made['expiresUnixMs'] / 1000)}"


@service_app.command("invite")
def service_invite(
    name: Service,
    roles: Roles = "submit,compute",
    expires: Expires = "1h",
    uses: Annotated[int, typer.Option(min=1, help="How many may join with it.")] = 1,
    approve: Annotated[
        bool, typer.Option("--approve", help="Whoever joins waits for an admin's word.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a link that lets somebody join. Example: pairio service invite lab --roles submit"""
    body = {
        "roles": roles.split(","),
        "uses": uses,
        "expiresSec": seconds(expires),
        "approve": approve,
    }
    made = api().call("POST", f"/api/v1/services/{part(name)}/invitations", body)
    _show_link(made, json)
    what = f"join {made['serviceName']!r} with roles {','.join(made['roles'])}"
    if approve:
        note(f"Whoever has the link may ask to {what}: pairio service requests {name}")
    else:
        who = "One" if uses == 1 else f"At most {uses}"
        note(f"{who} may {what}{_until(made)}: pairio join LINK")
    _note_proposal(made, name)


@service_app.command("invitations")
def service_invitations(name: Service, json: Json = False) -> None:
    """List the invitations of a service. Example: pairio service invitations lab"""
    found = api().call("GET", f"/api/v1/services/{part(name)}/invitations")["invitations"]
    if json:
        as_json(found)
        return
    rows = [
        [
            short(i["key"]),
            ",".join(i["roles"]),
            f"{i['used']} of {i['uses']}",
            i["state"].replace("_", " "),
            clock(i["expiresUnixMs"]),
        ]
        for i in found
    ]
    table(["INVITATION", "ROLES", "USED", "STATE", "UNTIL"], rows, "There was no invitation")


@service_app.command("uninvite")
def service_uninvite(
    name: Service,
    invitation: Annotated[str, typer.Argument(help="Its link or key, or the end of the key.")],
    json: Json = False,
) -> None:
    """Withdraw an invitation, by link or key. Example: pairio service uninvite lab LINK"""
    path = f"/api/v1/services/{part(name)}/uninvite"
    found = api().call("POST", path, {"invitation": invitation})
    if json:
        as_json(found)
        return
    if found.get("proposal") is None:
        finished(f"Withdrawn: nobody joins {name!r} with it any more")
    _note_proposal(found, name)


@service_app.command("link-device")
def service_link_device(name: Service, expires: Expires = "1h", json: Json = False) -> None:
    """Make a link for a further device of yours. Example: pairio service link-device lab"""
    body = {"expiresSec": seconds(expires)}
    made = api().call("POST", f"/api/v1/services/{part(name)}/devices", body)
    _show_link(made, json)
    finished(f"One device of yours may join {made['serviceName']!r} with it{_until(made)}")


def join(
    link: Annotated[str, typer.Argument(help="What `pairio service invite` printed.")],
    name: Annotated[str | None, typer.Option(help="Your name in the service.")] = None,
    roles: Annotated[
        str | None, typer.Option(help="Comma list; by default what the link gives.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 20,
    json: Json = False,
) -> None:
    """Join a service with a link. Example: pairio join LINK --name Ada"""
    ends = time.monotonic() + timeout
    node = api()
    body = {"link": link, "name": name, "roles": roles.split(",") if roles else None}
    try:
        found = node.call("POST", "/api/v1/joins", {**body, "waitSec": min(timeout, 2.0)})
        words, already = found["words"], found.get("already", False)
        if found["state"] == "waiting":
            note(f"joining {found['serviceName']!r} (words: {words}): {found['message']}")
        while found["state"] == "waiting" and (left := ends - time.monotonic()) > 0:
            path = f"/api/v1/joins/{part(found['serviceId'])}"
            found = node.call("GET", path, None, {"waitSec": min(left, _LOOK_S)})
    except KeyboardInterrupt:
        fail("interrupted; joining goes on in the background", "pairio-node status", INTERRUPTED)
    if json:
        as_json({**found, "words": words})
    if found["state"] == "waiting":
        fail(
            f"not joined {found['serviceName']!r} yet: {found['message']}", found["hint"], _TIMEOUT
        )
    _say_joined(found, words, already, json)


def _say_joined(found: dict[str, Any], words: str, already: bool, json: bool) -> None:
    if not json:
        data(found["serviceName"])
    name = found["serviceName"]
    if found["roles"] == ["guest"]:
        note(f"This node is a guest of {name!r} (words: {words}); what it may have there:")
        note(f"pairio service show {name}")
        return
    said = f"This node is in {name!r} already," if already else f"Joined {name!r}"
    finished(
        f"{said} as {found['member']!r} with roles {','.join(found['roles'])} (words: {words})"
    )
    if found["note"]:
        note(f"note: {found['note']}")


@service_app.command("requests")
def service_requests(name: Service, json: Json = False) -> None:
    """List who waits for an admin's word. Example: pairio service requests lab"""
    found = api().call("GET", f"/api/v1/services/{part(name)}/requests")["requests"]
    if json:
        as_json(found)
        return
    rows = [
        [r["id"], "leaves" if r["kind"] == "leave" else "joins", r["name"], ",".join(r["roles"]),
         r["peerId"]]
        for r in found
    ]  # fmt: skip
    table(["REQUEST", "WANTS", "NAME", "ROLES", "PEER"], rows, "Nobody waits for an admin's word")


@service_app.command("approve")
def service_approve(
    name: Service,
    request: RequestId,
    roles: Annotated[
        str | None, typer.Option(help="Comma list; by default what is asked for.")
    ] = None,
    json: Json = False,
) -> None:
    """Grant a request. Example: pairio service approve lab 3f2a --roles submit"""
    path = f"/api/v1/services/{part(name)}/requests/{part(request)}/approve"
    found = api().call("POST", path, {"roles": roles.split(",") if roles else None})
    if json:
        as_json(found)
        return
    if found.get("proposal") is None:
        what = ",".join(found["roles"])
        finished(
            f"{found['member']!r} is on the list of {name!r}: {what}" if what else "Off the list"
        )
    _note_proposal(found, name)


@service_app.command("deny")
def service_deny(name: Service, request: RequestId, json: Json = False) -> None:
    """Refuse a request. Example: pairio service deny lab 3f2a"""
    path = f"/api/v1/services/{part(name)}/requests/{part(request)}/deny"
    found = api().call("POST", path)
    as_json(found) if json else finished(f"Refused {short(found['peerId'])}")


@service_app.command("leave")
def service_leave(name: Service, json: Json = False) -> None:
    """Take part in a service no more. Example: pairio service leave lab"""
    found = api().call("POST", f"/api/v1/services/{part(name)}/leave")
    if json:
        as_json(found)
        return
    finished(f"This node takes part in {name!r} no more; what it has of it stays on the disk")
    if not found["offTheList"]:
        note("An admin's node takes it off the list as soon as one is connected")


@service_app.command("decline")
def service_decline(name: Service, json: Json = False) -> None:
    """Decline an offered service for good. Example: pairio service decline lab"""
    found = api().call("POST", f"/api/v1/services/{part(name)}/decline")
    if json:
        as_json(found)
        return
    finished(f"{name!r} is not offered again; to join it after all: pairio join LINK")
