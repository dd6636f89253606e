"""What the status says of relays: those that a node is reached by, and what it does as one."""

from typing import Any

__all__ = ["relay_lines"]


def relay_lines(status: dict[str, Any]) -> list[str]:
    """Return the lines for people; none for a node that has to do with no relay."""
    lines = []
    for relay in status.get("relays", ()):
        peer = relay["address"].rpartition("/p2p/")[2]
        state = f"holds a place, {relay['circuits']} connections" if relay["held"] else relay["why"]
        lines.append(f"relay      ...{peer[-6:]}: {state}")
    carried = status.get("relay")
    if carried:
        lines.append(
            f"relaying   for {carried['reservations']} of at most {carried['reservationsMax']},"
            f" {carried['circuits']} connections ({carried['circuitsOfStrangers']} of strangers),"
            f" {carried['bytes'] / 1e6:.1f} MB so far"
        )
    return lines
