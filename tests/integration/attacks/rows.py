"""All rows of the table, in the order in which they are tried."""

from tests.integration.attacks import (
    api,
    doors,
    forged,
    frames,
    lists,
    members,
    public,
    restarts,
)
from tests.integration.attacks.table import ROWS as _ROWS

__all__ = ["ROWS"]

#: Importing a module adds its rows.
_ORDER = [m.__name__ for m in (doors, members, forged, lists, public, frames, api, restarts)]
ROWS = sorted(_ROWS, key=lambda row: _ORDER.index(row.module))
