"""All rows of the table, in the order in which they are tried."""

from tests.integration.attacks import api, doors, forged, frames, lists, members, restarts
from tests.integration.attacks.table import ROWS

__all__ = ["ROWS"]

#: Importing a module adds its rows.
PARTS = (doors, members, forged, lists, frames, api, restarts)
