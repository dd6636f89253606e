"""A node's Kubo daemon: found at the start, watched, and told of results (`publish`).

The modules that speak to one are imported only where one is set: they bring an HTTP client along.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from pairio_node.config import NodeConfig
from pairio_node.errors import UnavailableError, UserError
from pairio_node.home import Home
from pairio_node.ipfs_settings import IpfsSettings
from pairio_node.kubo_routing import ask_holders
from pairio_node.transport import Transport
from pairio_protocol.kad import Contact

if TYPE_CHECKING:
    from pairio_node.blocks.kubo import Provider
    from pairio_node.blocks.kubo_store import KuboBlockStore
    from pairio_node.kubo_publish import KuboPublisher
    from pairio_node.node import Node

#: Providers that are asked for, and how long.
PROVIDERS_MAX: Final = 8
PROVIDERS_S: Final = 2.0

__all__ = ["Kubo", "open_kubo"]


class Kubo:
    """The daemon that keeps this node's blocks."""

    def __init__(self, settings: IpfsSettings, blocks: "KuboBlockStore") -> None:
        self.settings = settings
        self.blocks = blocks
        self._publisher: KuboPublisher | None = None

    async def run(self, node: "Node") -> None:
        """Watch the daemon, and tell it of results, until cancelled."""
        from pairio_node.kubo_publish import KuboPublisher

        folder = node.home.path / "published"
        self._publisher = KuboPublisher(node, self.blocks, self.settings.publish, folder)
        await self._warn(node.say)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.blocks.watch, node.say)
            nursery.start_soon(self._publisher.run)

    async def _warn(self, say: Callable[[str], None]) -> None:
        """Say it when the daemon announces what is not to be known."""
        try:
            strategy = await trio.to_thread.run_sync(self.blocks.api.strategy)
        except UserError:
            return
        if strategy not in ("pinned", "roots") and self.settings.publish != "all":
            say(
                f"note: the Kubo daemon announces more than what is published (Provide.Strategy is"
                f" {strategy!r}): if it is connected with strangers and a service here is private,"
                " set it to 'pinned'; see docs/ipfs.md"
            )

    async def find_providers(
        self, job: str, count: int = PROVIDERS_MAX, timeout_s: float = PROVIDERS_S
    ) -> "list[Provider]":
        """Ask the daemon's network who announced a result of a job: peers and addresses, at most
        `count`, in at most `timeout_s` or a little more; none while the daemon is away. Being named
        proves nothing: whoever is asked has to show a signed result."""
        try:
            return await trio.to_thread.run_sync(  # type: ignore[call-arg]
                self.blocks.api.providers,
                job,
                count,
                timeout_s,
                limiter=self.blocks.limiter,
                abandon_on_cancel=True,
            )
        except UserError:
            return []

    async def find_nodes(
        self, transport: Transport, job: str, timeout_s: float = PROVIDERS_S
    ) -> list[Contact]:
        """The same, and whom the daemons among them name in turn: pairio nodes announce themselves
        to their daemon."""
        named = await self.find_providers(job, timeout_s=timeout_s)
        return await ask_holders(transport, named, job) if named else []

    def status(self) -> dict[str, Any]:
        """What the node's status says of the daemon."""
        published = self._publisher.status() if self._publisher else {}
        return {**self.blocks.status(), **published}


async def open_kubo(home: Home, config: NodeConfig) -> Kubo | None:
    """Return the daemon of the settings, or None when none is set.

    Raises:
        UserError: it cannot be reached, is too old, or lets this node not in; with what to do.
    """
    settings = config.ipfs
    if settings is None:
        return None
    from pairio_node.blocks.kubo import KuboApi
    from pairio_node.blocks.kubo_store import KuboBlockStore

    def connect() -> KuboBlockStore:
        quota = config.quota_for(home.path)
        return KuboBlockStore(KuboApi(settings), home.key().peer, home.path / "kubo", quota)

    try:
        return Kubo(settings, await trio.to_thread.run_sync(connect))
    except UserError as error:
        hint = error.hint
        if isinstance(error, UnavailableError):
            hint = "start it (`ipfs daemon`), give its address, or run without --ipfs"
        raise UserError(error.message, hint=hint, code=error.code) from None
