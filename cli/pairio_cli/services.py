"""`pairio service` and `pairio app`: who may do what, and which apps there are."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, finished, note, short, table
from pairio_cli.shared import Image, Json, Service, api, new_typer, part

__all__ = ["app_app", "limits_text", "service_app"]

service_app = new_typer("Services: who may do what.")
app_app = new_typer("Apps of a service.")


def limits_text(public: dict[str, Any]) -> str:
    """Return in words what a stranger may have."""
    return (
        f"a job of at most {public['cpu_millicores'] / 1000:g} CPUs,"
        f" {public['memory_mib'] / 1024:g} GB, {public['gpus']} GPUs,"
        f" {public['time_ms'] / 1000:g} s;"
        f" {public['requests_per_hour']} an hour and {public['open_max']} at once,"
        f" all guests together {public['all_per_hour']} and {public['all_open_max']},"
        " of each sponsor"
    )


def _show_service(service: dict[str, Any]) -> None:
    data(f"{service['serviceName']}  {service['serviceId']}")
    rows = [
        [m["name"], ",".join(m["roles"]), " ".join(m["peers"]), "yes" if m["alive"] else "no"]
        for m in service["members"]
    ]
    table(["MEMBER", "ROLES", "PEERS", "ALIVE"], rows)
    data(f"apps: {', '.join(service['apps']) or 'none'}")
    if service["ended"]:
        data("it has ended: nobody has a role in it any more")
    if service["proposals"]:
        data(f"changes that wait for signatures: {service['proposals']}")
    if service["losingBranches"]:
        data(f"branches of changes that lost: {service['losingBranches']}; see its log")
    if service.get("results") == "public":
        data("results: anybody may read them")
    if service["public"]:
        data(f"public: {limits_text(service['public'])}")
        data(f"link for guests: {service['link']}")


@service_app.command("create")
def service_create(name: str, json: Json = False) -> None:
    """Create a service. Example: pairio service create lab"""
    made = api().call("POST", "/api/v1/services", {"name": name})
    as_json(made) if json else data(made["serviceId"])
    finished(f"Created service {made['serviceName']!r}; this node is its admin")


@service_app.command("ls")
def service_ls(json: Json = False) -> None:
    """List the services of this node. Example: pairio service ls"""
    services = api().call("GET", "/api/v1/services")["services"]
    if json:
        as_json(services)
        return
    rows = [
        [
            s["serviceName"],
            "ended" if s["ended"] else ",".join(s["roles"]) or "none",
            str(len(s["members"])),
            ", ".join(s["apps"]) or "none",
        ]
        for s in services
    ]
    table(["SERVICE", "MY ROLES", "MEMBERS", "APPS"], rows, "This node is in no service")


@service_app.command("show")
def service_show(name: Service, json: Json = False) -> None:
    """Show a service. Example: pairio service show lab"""
    service = api().call("GET", f"/api/v1/services/{part(name)}")
    as_json(service) if json else _show_service(service)


@service_app.command("offers")
def service_offers(json: Json = False) -> None:
    """List services that wait for your consent. Example: pairio service offers"""
    offers = api().call("GET", "/api/v1/offers")["offers"]
    if json:
        as_json(offers)
        return
    rows = [[o["serviceName"], o["serviceId"], " ".join(map(short, o["admins"]))] for o in offers]
    table(["SERVICE", "ID", "ADMINS"], rows, "Nothing waits for your consent")


@service_app.command("accept")
def service_accept(name: Service, json: Json = False) -> None:
    """Consent to be a member. Example: pairio service accept lab"""
    service = api().call("POST", f"/api/v1/services/{part(name)}/accept")
    if json:
        as_json(service)
    finished(f"This node takes part in {service['serviceName']!r}")


@app_app.command("install")
def app_install(
    service: Service,
    source: Annotated[str, typer.Argument(help="A directory, or the name of a shipped app.")],
    image: Image = None,
    json: Json = False,
) -> None:
    """Install an app; one that is there is updated. Example: pairio app install lab hello_world"""
    install(service, source, image, json)


def install(service: str, source: str, image: str | None, json: bool) -> None:
    """Put an app on the list of a service, from a directory here or a shipped one."""
    from pairio.errors import PairioError
    from pairio_cli.admins import done

    if not source:  # it would be the folder that this runs in
        raise PairioError("no app was named", "give a directory, or the name of a shipped app")
    if Path(source).is_dir():
        source = str(Path(source).absolute())
    if image is not None and Path(image).is_file():
        image = str(Path(image).absolute())
    body = {"source": source, "image": image}
    made = api().call("POST", f"/api/v1/services/{part(service)}/apps", body)
    if not json and made["proposal"] is None:
        data(made["appName"])
    processors = ", ".join(p["name"] for p in made["appSpecification"]["processors"])
    verb = "Updated" if made["updated"] else "Installed"
    done(made, json, f"{verb} {made['appName']!r} with processors {processors}")
    if image and not any("container" in p for p in made["appSpecification"]["processors"]):
        note(f"Image {image!r} is recorded and not used: no engine of containers here has it.")
        note("hint: give its docker-archive, `--image FILE.tar`; see docs/containers.md")


@app_app.command("ls")
def app_ls(service: Service, json: Json = False) -> None:
    """List the apps of a service. Example: pairio app ls lab"""
    apps = api().call("GET", f"/api/v1/services/{part(service)}/apps")["apps"]
    if json:
        as_json(apps)
        return
    rows = [
        [a["appName"], ", ".join(p["name"] for p in a["appSpecification"]["processors"])]
        for a in apps
    ]
    table(["APP", "PROCESSORS"], rows, "No app is installed")
