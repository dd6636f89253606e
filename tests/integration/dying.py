"""A node that dies between a commit and the answer to whoever waits for it, when the file `die`
lies in its home: `python -m tests.integration.dying run ...`."""

import os
import signal
from pathlib import Path
from typing import Any

from pairio_protocol.commands import Commands


def main() -> None:
    """Run the node."""
    stock = Commands.on_committed
    die = Path(os.environ["PAIRIO_HOME"]) / "die"

    def on_committed(self: Commands, ticket: int) -> Any:
        if self._by_ticket.get(ticket) and die.exists():
            die.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(self, ticket)

    Commands.on_committed = on_committed  # type: ignore[method-assign]
    from pairio_cli.node_main import main as run

    run()


if __name__ == "__main__":
    main()
