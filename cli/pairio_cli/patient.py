"""The node, for commands that wait: when it restarts meanwhile it is waited for, which is said."""

from typing import Any

from pairio._patient import RECONNECT_S, PatientApi
from pairio_cli.output import note

__all__ = ["AWAY", "PatientNode"]

#: What is said when the node goes, once each time.
AWAY = f"[the node is away; it is waited for, {RECONNECT_S:.0f} s at most]"


class PatientNode(PatientApi):
    """The node of this machine. What may be asked twice, as it reads or has a key, is asked again
    when the node was away; what else a command does is done once."""

    def __init__(self) -> None:
        super().__init__()
        self.on_away = lambda: note(AWAY)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Make a call; while the node is away, again if it may be made twice.

        Raises:
            NodeNotRunning, RequestRefused.
        """
        ask = super().call if method == "GET" or key else self.once
        return ask(method, path, body, query, key)
