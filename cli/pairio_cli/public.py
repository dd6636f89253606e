"""Commands: let strangers submit to a service, within limits."""

from typing import Annotated

import typer

from pairio_cli.admins import done
from pairio_cli.output import as_json, data, note
from pairio_cli.services import limits_text
from pairio_cli.shared import Json, Service, api, part

__all__ = ["service_public"]


def service_public(
    name: Service,
    requests_per_hour: Annotated[int, typer.Option(min=1, help="New jobs of one guest.")] = 20,
    open_max: Annotated[int, typer.Option(min=1, help="Jobs of one guest at once.")] = 4,
    all_per_hour: Annotated[int, typer.Option(min=1, help="New jobs of all guests.")] = 200,
    all_open_max: Annotated[int, typer.Option(min=1, help="Jobs of all guests at once.")] = 16,
    cpus: Annotated[float, typer.Option(min=0.001, help="CPUs of a job at most.")] = 1,
    memory_gb: Annotated[float, typer.Option(min=0.001, help="Memory of a job at most.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a job at most.")] = 0,
    time_sec: Annotated[float, typer.Option(min=0.001, help="Wall time of a job at most.")] = 60,
    off: Annotated[bool, typer.Option("--off", help="Strangers may submit no more.")] = False,
    json: Json = False,
) -> None:
    """Let strangers submit, within limits. Example: pairio service public lab --time-sec 30"""
    path = f"/api/v1/services/{part(name)}/public"
    if off:
        made = api().call("DELETE", path)
        done({**made, "changed": True}, json, f"{made['serviceName']!r} is not public any more")
        return
    body = {
        "requestsPerHour": requests_per_hour,
        "openMax": open_max,
        "allPerHour": all_per_hour,
        "allOpenMax": all_open_max,
        "numCpus": cpus,
        "memoryGb": memory_gb,
        "numGpus": gpus,
        "timeSec": time_sec,
    }
    made = api().call("POST", path, body)
    if made["proposal"] is not None:
        done(made, json, "")
        return
    as_json(made) if json else data(made["link"])
    note(f"{made['serviceName']!r} is public: whoever has this link may submit, as a guest:")
    note("pairio join LINK")
    note(f"limits: {limits_text(made['public'])}")
