"""What the status says of relays: those that a node is reached by, and what it does as one."""

from typing import Any

from pairio_protocol.figures import counted, size_text

__all__ = ["relay_lines"]


def relay_lines(status: dict[str, Any]) -> list[str]:
    """Return the lines for people; none for a node that has to do with no relay."""
    lines = []
    for relay in status.get("relays", ()):
        peer = relay["address"].rpartition("/p2p/")[2]
        state = (
            f"holds a place, {counted(relay['circuits'], 'connection')}"
            if relay["held"]
            else relay["why"]
        )
        lines.append(f"relay      ...{peer[-6:]}: {state}")
    carried = status.get("relay")
    if carried:
        lines.append(
            f"relaying   for {carried['reservations']} of at most {carried['reservationsMax']},"
            f" {counted(carried['circuits'], 'connection')}"
            f" ({carried['circuitsOfStrangers']} of strangers),"
            f" {size_text(carried['bytes'])} so far"
        )
    return lines
