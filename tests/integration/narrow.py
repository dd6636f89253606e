"""A node as it is in a large and old network: `python -m tests.integration.narrow run ...`.

Logs that are over are dropped within seconds instead of a month, so that who joins later has no
record of them; and nobody is dialled for having been heard of, as when all places are taken.
"""

from typing import Any

from pairio_protocol.context import CoreConfig
from pairio_protocol.machines.presence import PresenceBook

__all__ = ["main"]

_SHORT: Any = {"retention_ms": 2_000, "retention_look_ms": 500, "log_age_ms": 1_000}


def main() -> None:
    """Run the node."""
    made = CoreConfig.__init__
    setattr(CoreConfig, "__init__", lambda self, **rest: made(self, **_SHORT, **rest))  # noqa: B010
    setattr(PresenceBook, "_dial", lambda *_: None)  # noqa: B010
    from pairio_cli.node_main import main as run

    run()


if __name__ == "__main__":
    main()
