"""`pairio service` and `pairio app`: what admins do."""

import sys
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, fail, finished, note, short, table
from pairio_cli.shared import Image, Json, Service, api, part, people, service_path
from pairio_cli.times import ago_or_iso, clock
from pairio_protocol.figures import counted

__all__ = ["add_admin_commands", "done"]

AppName = Annotated[str, typer.Argument(help="As `pairio app ls` shows it.")]
_Roles = Annotated[str, typer.Option(help="Comma list of admin, submit, compute, read.")]


def done(made: dict[str, Any], json: bool, sentence: str) -> None:
    """Say what an act came to: done, nothing to do, or a proposal that waits for signatures."""
    if json:
        as_json(made)
    waiting = made["proposal"]
    if waiting is not None:
        missing = waiting["needed"] - waiting["have"]
        if not json:
            data(waiting["id"])
        after = (waiting["neededAfter"] or 0) - (waiting["haveAfter"] or 0)
        note(f"Proposed; it waits for {max(missing, after)} more of: {people(waiting['missing'])}")
        note(f"They sign with: pairio service sign {made['serviceName']} {short(waiting['id'])}")
    elif made["changed"]:
        finished(sentence)
    else:
        note("Nothing to do: it is so already")


def members(name: Service, json: Json = False) -> None:
    """List members, their roles and keys. Example: pairio service members lab"""
    service = api().call("GET", f"/api/v1/services/{part(name)}")
    if json:
        as_json(service["members"])
        return
    signs = set(service["admins"])
    rows = [
        [
            m["name"],
            ",".join(m["roles"]),
            " ".join(m["peers"]),
            "yes" if signs & set(m["peers"]) else "no",
            "yes" if m["alive"] else "no",
        ]
        for m in service["members"]
    ]
    table(["MEMBER", "ROLES", "PEERS", "SIGNS", "ALIVE"], rows)


def grant(
    service: Service,
    who: Annotated[str, typer.Argument(metavar="MEMBER|PEER")],
    roles: _Roles,
    name: Annotated[str | None, typer.Option("--name", help="Name of a new member.")] = None,
    json: Json = False,
) -> None:
    """Give a member roles, or add a peer. Example: pairio service grant lab PEER --roles submit"""
    body = {"who": who, "roles": roles.split(","), "name": name}
    made = api().call("POST", service_path(service, "grant"), body)
    named = [m for m in made["members"] if m["name"] == made["member"]]
    held = ",".join(named[0]["roles"]) if named else roles
    done(made, json, f"{made['member']!r} is in {made['serviceName']!r} with {held}")
    if made["changed"] and named and who in named[0]["peers"] and not named[0]["alive"]:
        note("That node is not connected and hears of it once it is; a link does both at once:")
        note(f"pairio service invite {service}")


def add_member(
    service: Service,
    peer: Annotated[str, typer.Argument(help="Peer id of a node; it need not be connected.")],
    roles: _Roles,
    name: Annotated[str | None, typer.Option("--name", help="Name of a new member.")] = None,
    json: Json = False,
) -> None:
    """Put a peer on the list. Example: pairio service add-member lab PEER --roles submit"""
    grant(service, peer, roles, name, json)


def revoke(
    service: Service,
    who: Annotated[str, typer.Argument(metavar="MEMBER|PEER")],
    roles: Annotated[str | None, typer.Option(help="Only these roles; a comma list.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="What was issued after it counts no more: 2026-01-31T14:00, or 2h (ago)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Take a member, one key, or roles off the list. Example: pairio service revoke lab bob"""
    body = {
        "who": who,
        "roles": roles.split(",") if roles else None,
        "sinceUnixMs": ago_or_iso(since, "--since") if since else None,
    }
    made = api().call("POST", service_path(service, "revoke"), body)
    what = f"has no role {roles} any more" if roles else "is off the list"
    done(made, json, f"{who!r} {what}; what it does from now on is refused")


def rename(
    service: Service,
    member: Annotated[str | None, typer.Argument(help="As it is called now.")] = None,
    new: Annotated[str | None, typer.Argument(metavar="NAME", help="The new name.")] = None,
    here: Annotated[
        str | None,
        typer.Option("--here", metavar="NAME", help="The service's name on this node only."),
    ] = None,
    json: Json = False,
) -> None:
    """Call a member otherwise. Example: pairio service rename lab node-3xA9bZ Ada"""
    if here is not None and member is None:
        renamed = api().call("POST", service_path(service, "rename"), {"name": here})
        as_json(renamed) if json else data(renamed["serviceName"])
        finished(f"The service is called {renamed['serviceName']!r} on this node")
        return
    if member is None or new is None or here is not None:
        fail("name a member and the new name, or --here NAME alone", None, 2)
    made = api().call("POST", service_path(service, "rename"), {"member": member, "name": new})
    done(made, json, f"{member!r} is called {made['member']!r} now")


def admins(
    service: Service,
    set_: Annotated[
        str | None, typer.Option("--set", help="All admins from now on: a comma list of peers.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(min=1, help="How many of them have to sign a change.")
    ] = None,
    json: Json = False,
) -> None:
    """Show or replace the admins. Example: pairio service admins lab --set A,B,C --threshold 2"""
    if set_ is None and threshold is None:
        found = api().call("GET", f"/api/v1/services/{part(service)}")
        shown = {"admins": found["admins"], "threshold": found["threshold"]}
        if json:
            as_json(shown)
            return
        names = {peer: m["name"] for m in found["members"] for peer in m["peers"]}
        table(["ADMIN", "PEER"], [[names.get(p, "-"), p] for p in found["admins"]])
        data(f"{found['threshold']} of {len(found['admins'])} sign a change")
        return
    found = api().call("GET", f"/api/v1/services/{part(service)}")
    named = set_.split(",") if set_ is not None else found["admins"]
    needed = threshold if threshold is not None else found["threshold"]
    body = {"admins": named, "threshold": needed}
    made = api().call("POST", service_path(service, "admins"), body)
    done(made, json, f"{needed} of {len(named)} admins sign a change now")


def delete(
    name: Service,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """End a service for everybody, for ever. Example: pairio service delete lab"""
    found = api().call("GET", f"/api/v1/services/{part(name)}")
    if not yes:
        if not sys.stdin.isatty():
            fail(f"deleting {name!r} cannot be undone", "add --yes if that is what you want", 1)
        members = counted(len(found["members"]), "member")
        note(f"{found['serviceName']!r} has {members}; this ends it for all.")
        if typer.prompt("Its name again", err=True) != found["serviceName"]:
            fail("that is not its name; nothing was done", f"pairio service delete {name}", 1)
    made = api().call("DELETE", f"/api/v1/services/{part(name)}")
    done(made, json, f"{found['serviceName']!r} has ended; nobody has a role in it any more")


def sign_over(name: Service, json: Json = False) -> None:
    """Give back what branches that lost took away. Example: pairio service sign-over lab"""
    made = api().call("POST", service_path(name, "sign-over"))
    branches = counted(len(made["over"]), "branch", "branches")
    done(made, json, f"Signed over {branches}; see pairio service log {name}")


def app_update(
    service: Service,
    source: Annotated[str, typer.Argument(help="A directory, or the name of a shipped app.")],
    image: Image = None,
    json: Json = False,
) -> None:
    """Put a newer version of an app on the list. Example: pairio app update lab hello_world"""
    from pairio_cli.services import install

    install(service, source, image, json)


def app_remove(service: Service, app: AppName, json: Json = False) -> None:
    """Take an app off the list. Example: pairio app remove lab hello_world"""
    made = api().call("DELETE", service_path(service, f"apps/{part(app)}"))
    done(made, json, f"Removed {app!r}; its jobs that are open are blocked until it is back")


def app_history(
    service: Service,
    app: Annotated[str | None, typer.Argument(help="This app only.")] = None,
    json: Json = False,
) -> None:
    """Show when apps came, were updated and went. Example: pairio app history lab"""
    found = api().call("GET", service_path(service, "app-history"), None, {"app": app})["history"]
    if json:
        as_json(found)
        return
    rows = [
        [str(e["epoch"]), clock(e["issuedUnixMs"]), people(e["signedBy"]), e["does"]] for e in found
    ]
    what = f"No app {app!r} was ever on the list" if app else "No app was ever on the list"
    table(["EPOCH", "WHEN", "SIGNED BY", "DOES"], rows, what)


def add_admin_commands(services: typer.Typer, apps: typer.Typer) -> None:
    """Add the commands to `pairio service` and `pairio app`."""
    services.command("members")(members)
    services.command("grant")(grant)
    services.command("add-member")(add_member)  # scripts rely on this name: it stays
    services.command("revoke")(revoke)
    services.command("rename")(rename)
    services.command("admins")(admins)
    services.command("delete")(delete)
    services.command("sign-over")(sign_over)
    apps.command("update")(app_update)
    apps.command("remove")(app_remove)
    apps.command("history")(app_history)
