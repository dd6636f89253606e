"""`pairio`: asks the node on this machine."""

import sys
from typing import Annotated

import typer

from pairio_cli import complete, joins, public, publish, results, watch
from pairio_cli.admins import add_admin_commands
from pairio_cli.batches import batch_app
from pairio_cli.cache import cache_app
from pairio_cli.content import content_app
from pairio_cli.jobs import job_app
from pairio_cli.nodes import node_app
from pairio_cli.output import as_json, data, fail, finished, guarded
from pairio_cli.proposals import add_proposal_commands
from pairio_cli.services import app_app, service_app
from pairio_cli.shared import (
    JobId,
    Json,
    SecretOption,
    ServiceOption,
    add_version,
    api,
    new_typer,
    part,
    patient_api,
    seconds,
)

__all__ = ["main"]

app = new_typer("Submit jobs to a peer-to-peer compute network.")
token_app = new_typer("Tokens for scripts.")
add_admin_commands(service_app, app_app)
add_proposal_commands(service_app)
app.add_typer(service_app, name="service")
app.add_typer(app_app, name="app")
app.add_typer(job_app, name="job")
app.add_typer(batch_app, name="batch")
app.add_typer(node_app, name="node")
app.add_typer(content_app, name="content")
app.add_typer(token_app, name="token")
app.add_typer(cache_app, name="cache")
app.command()(joins.join)
app.command()(watch.watch)
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
_JOB_ORDER = (
    *("ls", "show", "why", "logs", "wait", "cancel", "rerun", "rm"),
    *("explain", "graph", "script", "provenance"),
)
job_app.registered_commands.sort(key=lambda command: _JOB_ORDER.index(command.name or ""))


def _name(command: typer.models.CommandInfo) -> str:
    """Return what a command is called: by default as its function."""
    function = command.callback.__name__ if command.callback is not None else ""
    return command.name or function


_Texts = list[str] | None
_Number = float | None
_Job = Annotated[
    str | None, typer.Argument(metavar="[APP/PROCESSOR]", autocompletion=complete.processors)
]
_Input = Annotated[_Texts, typer.Option("-i", help="name=PATH, URL, CID or job:ID/OUTPUT")]
_NoCopy = Annotated[
    bool, typer.Option("--nocopy", help="Hash input files where they lie; copy nothing.")
]
_TimeSec = Annotated[
    _Number, typer.Option(min=0.001, help="An hour by default; for a guest what it may have.")
]
_Follow = Annotated[
    bool, typer.Option("-f", "--follow", help="Show what it writes and where, and wait.")
]
_Timeout = Annotated[_Number, typer.Option(min=0, help="Seconds to wait at most, with --wait.")]
_Target = Annotated[_Texts, typer.Option(metavar="PEER", help="Only this node may run it.")]
_File = Annotated[str | None, typer.Option("--file", help="Jobs in YAML or JSON; - for stdin.")]
_Rerun = Annotated[bool, typer.Option("--rerun-failing", help="Run anew if it failed before.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would become of it; submit nothing.")
]


@app.command()
def submit(
    name: _Job = None,
    service: ServiceOption = None,
    parameter: Annotated[_Texts, typer.Option("-p", help="name=value")] = None,
    input_: _Input = None,
    nocopy: _NoCopy = False,
    output: Annotated[_Texts, typer.Option("-o", help="name=FILE_BASE_NAME")] = None,
    secret: SecretOption = None,
    cpus: Annotated[_Number, typer.Option(min=0.001, help="1 by default.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="None by default.")] = None,
    memory_gb: Annotated[_Number, typer.Option(min=0.001, help="1 by default.")] = None,
    time_sec: _TimeSec = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    follow: _Follow = False,
    timeout: _Timeout = None,
    tag: Annotated[_Texts, typer.Option(help="May be given several times.")] = None,
    batch: Annotated[str, typer.Option(help="Name for many jobs: pairio batch.")] = "",
    target: _Target = None,
    skip_cache: Annotated[bool, typer.Option("--skip-cache", help="Run anew.")] = False,
    rerun_failing: _Rerun = False,
    file: _File = None,
    dry_run: _DryRun = False,
    json: Json = False,
) -> None:
    """Submit a job. Example: pairio submit hello_world/hello_world_1 -p name=Ada --wait"""
    from pairio_cli.jobfile import read_jobs, submit_file
    from pairio_cli.submit import Waiting, Wish

    if timeout is not None and not (wait or follow):
        fail("--timeout is given without --wait", "add --wait", 2)
    if name is None and file is None:
        fail("Missing argument APP/PROCESSOR, or --file FILE", "pairio submit --help", 2)
    if file is not None and (name or parameter or input_ or output):
        fail("with --file the file names job, -p, -i and -o", "leave them out, or --file", 2)
    wish = Wish(
        name=name or "",
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
        batch=batch,
        targets=tuple(target or ()),
    )
    jobs = [("", wish)] if file is None else read_jobs(file, wish)
    waiting = Waiting(wait, follow, timeout)
    sys.exit(submit_file(patient_api(), jobs, waiting, dry_run=dry_run, json=json))


@app.command("open")
def open_page(
    job_id: JobId,
    print_: Annotated[bool, typer.Option("--print", help="Print the link only.")] = False,
    json: Json = False,
) -> None:
    """Open a job's page in the browser. Example: pairio open ID"""
    node = api()
    job = node.call("GET", f"/api/v1/jobs/{part(job_id)}")
    link = node.call("POST", "/api/v1/links", {"path": f"/job/{job['jobId']}"})["url"]
    as_json({"jobId": job["jobId"], "url": link}) if json else data(link)
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
    finished("Shown this once; use it as PAIRIO_API_KEY with PAIRIO_API_URL")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the network running.")] = False,
) -> None:
    """Run a network of three nodes on this machine. Example: pairio demo"""
    from pairio_cli.demo import run_demo

    sys.exit(run_demo(keep))


#: How `pairio --help` lists its commands: what a newcomer needs first.
_FIRST = (
    *("demo", "join", "submit", "watch", "get", "open", "verify", "export", "import"),
    *("publish", "unpublish", "published"),
)
app.registered_commands.sort(key=lambda command: _FIRST.index(_name(command)))


def main() -> None:
    """Run the command line."""
    guarded(app)
