"""All rows of the table, in the order in which they are tried."""

from tests.integration.attacks import (
    api,
    bitswap,
    blocks,
    consoles,
    dht,
    doors,
    forged,
    frames,
    joining,
    lists,
    members,
    proposals,
    public,
    relays,
    restarts,
    secret_streams,
    sponsors,
    streams,
)
from tests.integration.attacks.table import ROWS as _ROWS

__all__ = ["ROWS"]

#: Importing a module adds its rows.
_MODULES = (
    *(doors, members, forged, lists, proposals, joining, public, sponsors),
    *(frames, blocks, consoles, secret_streams, streams, dht, bitswap, relays, api, restarts),
)
_ORDER = [module.__name__ for module in _MODULES]
ROWS = sorted(_ROWS, key=lambda row: _ORDER.index(row.module))
