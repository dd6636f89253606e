"""Serves the API and the gateway with Hypercorn in the node's own loop."""

import logging
import socket
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from pairio_node.api.app import make_app
from pairio_node.api.auth import Auth
from pairio_node.api.connections import use_own_connections
from pairio_node.api.content import make_gateway
from pairio_node.api.facade import NodeFacade
from pairio_node.api.links import Links
from pairio_node.errors import UserError

__all__ = ["serve_api"]

_GRACE_S = 1.0


def _check_free(port: int, setting: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is taken by another program",
                hint=f"stop that program, or choose another port: {setting} in node.toml",
                code="port_taken",
            ) from None


def _config(port: int) -> Config:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    config.loglevel = "ERROR"
    config.keep_alive_max_requests = 10**9  # stock: closes without notice after 1000
    config.keep_alive_timeout = 75
    config.graceful_timeout = _GRACE_S
    return config


async def serve_api(
    node: NodeFacade,
    auth: Auth,
    links: Links,
    api_port: int,
    gateway_port: int,
    stop: trio.Event,
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve both origins on loopback until `stop`.

    Raises:
        UserError: a port is taken; nothing was served.
    """
    _check_free(api_port, "api_port")
    _check_free(gateway_port, "gateway_port")
    use_own_connections()
    logging.getLogger("hypercorn.error").setLevel(logging.ERROR)
    apps: list[tuple[Any, int]] = [
        (make_app(node, auth), api_port),
        (make_gateway(node, links, gateway_port), gateway_port),
    ]
    async with trio.open_nursery() as nursery:
        for app, port in apps:
            await nursery.start(
                partial(serve, app, _config(port), mode="asgi", shutdown_trigger=stop.wait)
            )
        task_status.started()
