"""`pairio node ...`: the nodes of members."""

from typing import Any

from pairio_cli.output import as_json, short, table
from pairio_cli.shared import Json, ServiceOption, api, new_typer

__all__ = ["node_app", "node_rows"]

node_app = new_typer("Nodes of the members of your services.")
HEADERS = ["MEMBER", "NODE", "SERVICE", "STATE", "FREE", "RUNNING", "CPUS", "GB", "GPUS"]


@node_app.command("ls")
def node_ls(service: ServiceOption = None, json: Json = False) -> None:
    """List the nodes of members: alive, free, running. Example: pairio node ls"""
    found = api().call("GET", "/api/v1/nodes", None, {"serviceName": service})["nodes"]
    if json:
        as_json(found)
        return
    table(HEADERS, node_rows(found), "This node is in no service: pairio service create NAME")


def node_rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each node."""
    return [
        [
            node["name"] + (" (this node)" if node["isThis"] else ""),
            short(node["peerId"]),
            node["serviceName"],
            _state(node),
            f"{node['free']}/{node['slots']}" if node["computes"] else "-",
            str(node["running"]) if node["computes"] else "-",
            f"{node['numCpus']:g}" if node["isAlive"] else "-",
            f"{node['memoryGb']:.0f}" if node["isAlive"] else "-",
            str(node["numGpus"]) if node["isAlive"] else "-",
        ]
        for node in found
    ]


def _state(node: dict[str, Any]) -> str:
    if not node["isAlive"]:
        return "away"
    if not node["isConnected"]:
        return "alive, not connected"
    return "computes" if node["computes"] else "alive"
