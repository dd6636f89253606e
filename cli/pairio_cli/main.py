"""`pairio`: asks the node on this machine."""

import sys
from typing import Annotated

import click
import typer

from pairio_cli import joins, public, publish, results
from pairio_cli.admins import add_admin_commands
from pairio_cli.cache import cache_app
from pairio_cli.content import content_app
from pairio_cli.output import as_json, data, fail, guarded, note, short, table
from pairio_cli.proposals import add_proposal_commands
from pairio_cli.services import app_app, service_app
from pairio_cli.shared import (
    JobId,
    Json,
    ServiceOption,
    add_version,
    api,
    new_typer,
    part,
    seconds,
)

__all__ = ["main"]

app = new_typer("Submit jobs to a peer-to-peer compute network.")
job_app = new_typer("Jobs.")
token_app = new_typer("Tokens for scripts.")
add_admin_commands(service_app, app_app)
add_proposal_commands(service_app)
app.add_typer(service_app, name="service")
app.add_typer(app_app, name="app")
app.add_typer(job_app, name="job")
app.add_typer(content_app, name="content")
app.add_typer(token_app, name="token")
app.add_typer(cache_app, name="cache")
app.command()(joins.join)
for command in (results.get, results.verify, results.export):
    app.command()(command)
app.command("import")(results.import_)
job_app.command("provenance")(results.provenance)
app.command()(publish.publish)
app.command()(publish.unpublish)
app.command()(publish.published)
service_app.command("public")(public.service_public)
service_app.command("policy")(publish.service_policy)
add_version(app)
#: How `pairio service --help` lists its commands: what belongs together stands together.
_ORDER = (
    *("create", "ls", "show", "public", "policy", "delete"),
    *("invite", "invitations", "uninvite", "requests", "approve", "deny", "link-device"),
    *("offers", "accept", "decline", "leave"),
    *("members", "grant", "add-member", "revoke", "rename", "admins"),
    *("proposals", "propose", "sign", "withdraw"),
    *("log", "verify-log", "sign-over"),
)
service_app.registered_commands.sort(key=lambda command: _ORDER.index(command.name or ""))
_STATUSES = ("pending", "starting", "running", "completed", "failed", "canceled", "blocked")


@app.command()
def submit(
    name: Annotated[str, typer.Argument(metavar="APP/PROCESSOR")],
    service: ServiceOption = None,
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value")] = None,
    input_: Annotated[
        list[str] | None, typer.Option("-i", help="name=PATH, URL, CID or job:ID/OUTPUT")
    ] = None,
    nocopy: Annotated[
        bool, typer.Option("--nocopy", help="Hash input files where they lie; copy nothing.")
    ] = False,
    output: Annotated[list[str] | None, typer.Option("-o", help="name=FILE_BASE_NAME")] = None,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", help="NAME=@FILE or NAME=env:VARIABLE")
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=0.001, help="1 by default.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="None by default.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0.001, help="1 by default.")] = None,
    time_sec: Annotated[
        float | None,
        typer.Option(min=0.001, help="An hour by default; for a guest what it may have."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most, with --wait.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    skip_cache: Annotated[bool, typer.Option("--skip-cache", help="Run anew.")] = False,
    rerun_failing: Annotated[
        bool, typer.Option("--rerun-failing", help="Run anew if it failed before.")
    ] = False,
    json: Json = False,
) -> None:
    """Submit a job. Example: pairio submit hello_world/hello_world_1 -p name=Ada --wait"""
    from pairio_cli.submit import Wish, submit_wish

    if timeout is not None and not wait:
        fail("--timeout is given without --wait", "add --wait", 2)
    wish = Wish(
        name=name,
        service=service,
        parameters=parameter or [],
        inputs=input_ or [],
        outputs=output or [],
        resources={
            "numCpus": cpus,
            "numGpus": gpus,
            "memoryGb": memory_gb,
            "timeSec": time_sec,
        },
        tags=tag or [],
        skip_cache=skip_cache,
        rerun_failing=rerun_failing,
        nocopy=nocopy,
        secrets=secret or [],
    )
    sys.exit(submit_wish(api(), wish, wait=wait, timeout_s=timeout, json=json))


@job_app.command("show")
def job_show(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Show a job. Example: pairio job show ID"""
    job = api().call("GET", f"/api/v1/jobs/{part(job_id)}", None, {"serviceName": service})
    if json:
        as_json(job)
        return
    from pairio_cli.submit import show_job

    show_job(job)


@job_app.command("why")
def job_why(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Say why a job is where it is, node by node. Example: pairio job why ID"""
    path = f"/api/v1/jobs/{part(job_id)}/why"
    found = api().call("GET", path, None, {"serviceName": service})
    if json:
        as_json(found)
        return
    data(found["status"] + (f": {found['error']}" if found["error"] else ""))
    if found.get("waitsForSecretsOf"):
        data(f"waits for secrets from {found['waitsForSecretsOf']}, which is away or lost them")
    if found.get("lost"):
        data(found["lost"])
    for job in found["waitsFor"]:
        data(f"waits for the result of job {job}")
    if found["attempt"]:
        data(f"{found['attempt']['state']} at {found['attempt']['node']}")
    for node in found["nodes"]:
        said = "fits" if node["fits"] else f"{node['rule']}: needs {node['need']}"
        data(f"{node['name']}: {said}" + (f", has {node['have']}" if node["have"] else ""))


@job_app.command("cancel")
def job_cancel(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Withdraw a job, or one request by its id. Example: pairio job cancel ID"""
    path = f"/api/v1/jobs/{part(job_id)}/cancel"
    job = api().call("POST", path, None, {"serviceName": service})
    if json:
        as_json(job)
        return
    note(f"job {job['jobId']} is {job['status']}")


@job_app.command("ls")
def job_ls(
    service: ServiceOption = None,
    status: Annotated[
        str | None,
        typer.Option(click_type=click.Choice(_STATUSES), help="Jobs in this state only."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Jobs with this tag only.")] = None,
    output: Annotated[
        str | None, typer.Option(metavar="CID", help="Jobs that made this content only.")
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="CID", help="Jobs that used it only.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    json: Json = False,
) -> None:
    """List jobs, newest first. Example: pairio job ls --status running"""
    query = {"serviceName": service, "status": status, "tag": tag, "limit": limit}
    query |= {"output": output, "input": input_}
    jobs = api().call("GET", "/api/v1/jobs", None, query)["jobs"]
    if json:
        as_json(jobs)
        return
    rows = [
        [
            short(j["jobId"]),
            f"{j['jobDefinition']['appName']}/{j['jobDefinition']['processorName']}",
            j["status"],
            short(j["computeNodeId"]),
            ",".join(j["tags"]),
        ]
        for j in jobs
    ]
    table(["JOB", "PROCESSOR", "STATUS", "NODE", "TAGS"], rows, "No such job is known here")


@job_app.command("logs")
def job_logs(job_id: JobId, service: ServiceOption = None) -> None:
    """Print the console output of a job. Example: pairio job logs ID"""
    path = f"/api/v1/jobs/{part(job_id)}/console"
    for chunk in api().stream(path, {"serviceName": service}):
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


@app.command("open")
def open_page(
    job_id: JobId,
    print_: Annotated[bool, typer.Option("--print", help="Print the link only.")] = False,
) -> None:
    """Open a job's page in the browser. Example: pairio open ID"""
    node = api()
    job = node.call("GET", f"/api/v1/jobs/{part(job_id)}")
    link = node.call("POST", "/api/v1/links", {"path": f"/job/{job['jobId']}"})["url"]
    data(link)
    if not print_:
        import webbrowser

        webbrowser.open(link)


@token_app.command("create")
def token_create(
    name: str,
    read_only: Annotated[bool, typer.Option("--read-only", help="Reading calls only.")] = False,
    expires: Annotated[str | None, typer.Option(help="Such as 30m, 12h, 7d.")] = None,
    json: Json = False,
) -> None:
    """Create a token for a script. Example: pairio token create notebook --expires 7d"""
    body = {"name": name, "readOnly": read_only, "expiresSec": seconds(expires)}
    made = api().call("POST", "/api/v1/tokens", body)
    as_json(made) if json else data(made["token"])
    note("Shown this once; use it as PAIRIO_API_KEY with PAIRIO_API_URL")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the network running.")] = False,
) -> None:
    """Run a network of three nodes on this machine. Example: pairio demo"""
    from pairio_cli.demo import run_demo

    sys.exit(run_demo(keep))


def main() -> None:
    """Run the command line."""
    guarded(app)
