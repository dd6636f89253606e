"""Keeps the code of apps here before a job asks for it.

A job has to be able to run where nobody reaches the node that installed its app: when that node
is dead, or on the other side of a cut. So a computing node fetches the bundle of every app of the
services that it computes for, as soon as it is connected to a member that has it.
"""

from collections.abc import Callable, Container

import trio

from pairio_node.blocks import Exchange, FetchFailed
from pairio_node.errors import UserError
from pairio_protocol.apps import archives_of
from pairio_protocol.core import NodeCore
from pairio_protocol.owner import allows_app

__all__ = ["CodeKeeper"]

LOOK_S = 1.0
RETRY_S = 10.0


class CodeKeeper:
    """Fetches code in the background, one after the other; `core` is asked when looking. Images
    are code, too, where they can be run: with `containers`."""

    def __init__(
        self,
        core: NodeCore,
        exchange: Exchange,
        connected: Callable[[], frozenset[str]],
        containers: bool = False,
    ) -> None:
        self._core = core
        self._containers = containers
        self._exchange = exchange
        self._connected = connected
        self._here: set[tuple[str, str]] = set()
        self._tried: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}

    def forget(self, cids: Container[str]) -> None:
        """These blocks are not here any more: bundles among them are fetched again if wanted."""
        self._here = {(service, b) for service, b in self._here if b not in cids}

    @property
    def missing(self) -> list[tuple[str, str]]:
        """The (service, bundle) that are wanted here and not known to be here."""
        core = self._core
        wanted: set[tuple[str, str]] = set()
        for service in core.membership.taken_up:
            folded = core.membership.folded(service)
            if core.ctx.config.compute and "compute" in folded.roles_of(core.ctx.me):
                rules = core.owner.rules(service)
                for name, app in folded.apps.items():
                    if allows_app(rules, name):
                        archives = archives_of(app) if self._containers else []
                        wanted |= {(service, cid) for cid in (app["bundle"], *archives)}
        return sorted(wanted - self._here)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            for service, bundle in self.missing:
                await self._fetch(service, bundle)
            await trio.sleep(LOOK_S)

    async def _fetch(self, service: str, bundle: str) -> None:
        """Fetch one bundle; again after RETRY_S, or as soon as other members are connected."""
        holders = self._connected()
        key = (service, bundle)
        tried_s, tried = self._tried.get(key, (-RETRY_S, None))
        if holders == tried and trio.current_time() - tried_s < RETRY_S:
            return
        try:
            await self._exchange.fetch(service, bundle, sorted(holders))
        except (FetchFailed, UserError):  # the job that needs it will say so
            self._tried[key] = trio.current_time(), holders
        else:
            self._here.add(key)
