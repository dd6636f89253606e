"""A node's Kubo daemon: found at the start, watched, and told of results (`publish`).

The modules that speak to one are imported only where one is set: they bring an HTTP client along.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.config import NodeConfig
from pairio_node.errors import UnavailableError, UserError
from pairio_node.home import Home
from pairio_node.ipfs_settings import IpfsSettings

if TYPE_CHECKING:
    from pairio_node.blocks.kubo_store import KuboBlockStore

__all__ = ["Kubo", "open_kubo"]


class Kubo:
    """The daemon that keeps this node's blocks."""

    def __init__(self, settings: IpfsSettings, blocks: "KuboBlockStore") -> None:
        self.settings = settings
        self.blocks = blocks

    async def run(self, say: Callable[[str], None]) -> None:
        """Watch the daemon until cancelled; `say` tells the owner what changes."""
        await self.blocks.watch(say)

    def status(self) -> dict[str, Any]:
        """What the node's status says of the daemon."""
        return {**self.blocks.status(), "publish": self.settings.publish}


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
