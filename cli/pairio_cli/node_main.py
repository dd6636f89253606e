"""`pairio-node`: this machine's node."""

import fcntl
import json as json_module
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli import nodelog
from pairio_cli.doctor import doctor
from pairio_cli.keys import keys_app
from pairio_cli.output import as_json, data, fail, finished, guarded, note
from pairio_cli.relays import relay_lines
from pairio_cli.shared import add_version, new_typer
from pairio_cli.watchdog import last_words, watch, watched
from pairio_protocol.figures import counted

__all__ = ["main"]

#: Reasons for refusals that `status` names.
REFUSALS_SHOWN = 3
#: How often `drain` looks what still runs.
_DRAIN_LOOK_S = 0.3
_STOP_S = 60.0

app = new_typer("Run a node of the pairio network on this machine.")
add_version(app)
app.add_typer(keys_app, name="key")
app.command()(nodelog.logs)
app.command()(doctor)


def _home(path: Path | None) -> Any:
    from pairio_node.home import Home

    return Home.open(path)


@app.command()
def init(
    home: Annotated[Path | None, typer.Option(help="The home; default PAIRIO_HOME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a home with a new key. Example: pairio-node init"""
    opened = _home(home)
    peer = opened.key().peer
    as_json({"peerId": peer, "home": str(opened.path)}) if json else data(peer)
    finished(f"The node's home is {opened.path}; its key is in node.key, keep it secret")


@app.command()
def run(
    listen: Annotated[list[str] | None, typer.Option(help="Multiaddr to listen on.")] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Multiaddr of a node that you trust, with /p2p/ID.")
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddr of a node by way of which others reach this one."),
    ] = None,
    be_relay: Annotated[
        bool | None, typer.Option("--be-relay", help="Let members be reached by way of this node.")
    ] = None,
    compute: Annotated[bool | None, typer.Option("--compute/--no-compute")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs for jobs.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory for jobs.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs for jobs.")] = None,
    api_port: Annotated[int | None, typer.Option(help="Port of the API on loopback.")] = None,
    allow_process: Annotated[
        list[str] | None,
        typer.Option(help="Service or app that may run here without a sandbox."),
    ] = None,
    ipfs_peer: Annotated[
        list[str] | None, typer.Option(help="Multiaddr of an IPFS node, with /p2p/ID.")
    ] = None,
    ipfs: Annotated[
        str | None,
        typer.Option(help="RPC address of a Kubo daemon that keeps the content: URL or multiaddr."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The ready line as JSON.")] = False,
    yield_jobs: Annotated[
        bool, typer.Option("--yield-jobs", help="Jobs end with the node; nothing is left behind.")
    ] = False,
    watchdog: Annotated[
        bool, typer.Option("--watchdog/--no-watchdog", help="Start the node again after a crash.")
    ] = True,
) -> None:
    """Run the node until Ctrl-C. Example: pairio-node run --bootstrap /ip4/.../p2p/12D3Koo..."""
    crashes = watched()
    if watchdog and crashes is None:
        from pairio._http import default_home

        raise typer.Exit(watch(default_home(), sys.argv[1:]))
    settings = {
        "listen": listen,
        "bootstrap": bootstrap,
        "relays": relay,
        "relay": be_relay,
        "compute": compute,
        "cpus": cpus,
        "memory_gb": memory_gb,
        "gpus": gpus,
        "api_port": api_port,
        "allow_process": allow_process,
        "ipfs_peers": ipfs_peer,
        "restart_grace_s": 0 if yield_jobs else None,
        "ipfs": ipfs,
    }
    _run_here(settings, json, crashes)


def _run_here(settings: dict[str, Any], json: bool, crashes: dict[str, Any] | None) -> None:
    """Run the node in this process; `crashes` is what the watchdog tells of earlier starts."""
    import trio

    from pairio_node.config import load_config
    from pairio_node.run import run_node

    home = _home(None)
    config = load_config(home.path / "node.toml", settings)

    def ready(info: dict[str, Any]) -> None:
        if json:
            print(json_module.dumps(info), flush=True)
        else:
            line = f"ready {info['peerId']} {' '.join(info['addresses'])} {info['apiUrl']}"
            print(line, flush=True)

    with nullcontext() if crashes is None else last_words(home.path):
        try:
            trio.run(run_node, home, config, ready, note, crashes)
        except BaseExceptionGroup as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of a user in a group, else the group."""
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if hasattr(found, "hint"):
            return found
    return group


@app.command()
def status(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the node that runs on the home. Example: pairio-node status"""
    from pairio._http import Api

    with closing(Api()) as api:
        found = api.call("GET", "/api/v1/status")
    if json:
        as_json(found)
        return
    capacity = found["capacity"]
    data(f"peer       {found['peerId']}")
    data(f"version    {found['version']}")
    for address in found["addresses"]:
        data(f"address    {address}")
    for line in relay_lines(found):
        data(line)
    data(f"api        {found['apiUrl']}")
    data(f"services   {', '.join(found['services']) or 'none'}")
    for wish in found.get("joins", []):
        verb = "leaving" if wish["kind"] == "leave" else "joining"
        data(f"{verb}    {wish['serviceName']}: {wish['message']}")
    data(f"peers      {len(found['peers'])} connected")
    others = set((found.get("bitswap") or {}).get("peers", ())) - set(found["peers"])
    if others:
        data(f"ipfs       {len(others)} peers that speak Bitswap")
    data(
        f"capacity   {capacity['numCpus']:g} CPUs, {capacity['memoryGb']:.1f} GB,"
        f" {capacity['numGpus']} GPUs; isolation {found['isolation']}"
    )
    data(f"running    {found['running']}")
    for entry in found.get("warm", ()):
        jobs = f"{entry['jobsWarm']} jobs warm, {entry['jobsCold']} cold"
        why = f" ({entry['why']})" if entry["why"] else ""
        data(f"warm       {entry['service']}/{entry['app']}: {entry['workers']}, {jobs}{why}")
    if ipfs := found.get("ipfs"):
        state = ipfs["error"] or f"answers, {counted(ipfs['published'], 'result')} published"
        data(f"ipfs       Kubo {ipfs['version']} at {ipfs['api']}: {state}")
    crash = found["lastCrash"]
    told = f"; the last crash was at {crash['time']}: {crash['reason']}" if crash else ""
    data(f"restarts   {found['restarts']}{told}")
    if found.get("closedNow"):
        data(f"hours      outside the owner's hours now: {', '.join(found['closedNow'])}")
    for name in found.get("rulesForNone", []):
        data(f"warning    [rules.services.{name}] in node.toml names no service of this node")
    for twin in found.get("twins", []):
        data(f"warning    {twin['words']}")
    _refused(found["counters"])
    for name, count in sorted(found["counters"].items()):
        if count:
            data(f"  {name}: {count}")


@app.command()
def drain(
    wait_sec: Annotated[
        float | None,
        typer.Option(help="What runs gets so long; then it is given up. Default: to its end."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON at the end.")] = False,
) -> None:
    """Stop the node when its jobs are over: it takes no more, and hands back those that wait.
    Example: pairio-node drain --wait-sec 60"""
    from pairio._http import Api
    from pairio.errors import NodeNotRunning

    with closing(Api()) as api:
        home = Path(api.call("GET", "/api/v1/status")["home"])
        began = running = api.call("POST", "/api/v1/drain", {"waitSec": wait_sec})["running"]
        note(f"The node takes no more jobs; {_still(running)}")
        try:
            while True:
                time.sleep(_DRAIN_LOOK_S)
                left = api.call("GET", "/api/v1/status")["running"]
                if left != running:
                    note(_still(left))
                running = left
        except NodeNotRunning:
            pass  # it stops; what it still does takes seconds
    ends_s = time.monotonic() + _STOP_S
    while _is_locked(home):
        if time.monotonic() > ends_s:
            fail(f"the node has not stopped for {_STOP_S:g} s", "look: pairio-node logs", 4)
        time.sleep(_DRAIN_LOOK_S)
    if json:
        as_json({"home": str(home), "running": began, "stopped": True})
    finished("The node has stopped; no job of it is left")


def _still(running: int) -> str:
    return f"{counted(running, 'run')} {'goes' if running == 1 else 'go'} on"


def _is_locked(home: Path) -> bool:
    """Say whether a node has a home."""
    try:
        with (home / "node.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass  # a home that went with its node
    return False


def _refused(counters: dict[str, int]) -> None:
    """Show what peers tried in vain: how often, and the most frequent of it."""
    mark = "refused: "
    reasons = {name[len(mark) :]: n for name, n in counters.items() if name.startswith(mark)}
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = "; ".join(f"{count} x {reason}" for reason, count in most[:REFUSALS_SHOWN])
    more = f"; {len(most) - REFUSALS_SHOWN} more" if len(most) > REFUSALS_SHOWN else ""
    told = f": {shown}{more}" if shown else ""
    data(f"refused    {sum(reasons.values())}{told}")


def main() -> None:
    """Run the command line."""
    guarded(app)
