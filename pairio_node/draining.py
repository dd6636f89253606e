"""The end of a node that its owner asked for ahead: it takes no more runs, hands back those that
have not started, lets those that run come to their ends or gives them up, sees to it that others
have their results, and stops. Nothing is left to supervisors.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from pairio_protocol import events as ev

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Draining"]

_LOOK_S = 0.1
#: So long others get for copying what only this node has.
_COPIES_S = 30.0


class Draining:
    """Whether the node drains, and until when what runs may go on. `stopped` is called when
    nothing keeps the node any more."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._ends_s: float | None = None
        self.stopped: Callable[[], None] = lambda: None

    @property
    def begun(self) -> bool:
        """Say whether the node drains."""
        return self._ends_s is not None

    def begin(self, wait_s: float | None) -> dict[str, Any]:
        """Begin, or change until when what runs may go on (None: to its end); returns how many
        runs there are."""
        now_s = trio.current_time()
        first = not self.begun
        self._ends_s = float("inf") if wait_s is None else now_s + wait_s
        if first:
            self._node.driver.post(ev.Draining())
            self._node.spawn(self._run)
        return {"running": self._node.executions.running}

    async def _run(self) -> None:
        assert self._ends_s is not None
        while (  # noqa: ASYNC110 - the end may be moved meanwhile
            self._node.executions.running and trio.current_time() < self._ends_s
        ):
            await trio.sleep(_LOOK_S)
        with trio.move_on_after(_COPIES_S):
            while self._is_copying():  # noqa: ASYNC110 - looked at, not told
                await trio.sleep(_LOOK_S)
        self.stopped()

    def _is_copying(self) -> bool:
        replication = self._node.core.replication
        return not all(replication.is_settled(key) for key in list(replication.copies))
