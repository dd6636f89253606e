"""What clients see of the cache: its roots and what a collection did."""

from typing import Any, NamedTuple

from pairio_node.blocks.collection import Looked, Report
from pairio_node.cache_needs import Name, Roots
from pairio_protocol.core import NodeCore

__all__ = ["Row", "gc_view", "row_view", "rows_of"]

_NAMES_SHOWN = 3


class Row(NamedTuple):
    """A root that is here."""

    cid: str
    size_bytes: int
    why: tuple[str, ...]
    used_unix_s: float


def rows_of(looked: Looked, known: Roots) -> list[Row]:
    """Return the roots, most recently used first, in a thread. What lies under two is in the size
    of both."""
    found, needs = looked.survey, looked.needs
    under = {why: found.below(cids) for why, cids in needs.reasons.items()}
    linked = {child for children in found.links.values() for child in children}
    tops = {cid for cid in found.blocks if cid not in linked or cid in known.names}
    rows = [
        Row(
            cid,
            found.size_of(found.below([cid])),
            tuple(why for why, cids in under.items() if cid in cids),
            found.blocks[cid].used_unix_s,
        )
        for cid in tops
    ]
    return sorted(rows, key=lambda row: (-row.used_unix_s, row.cid))


def row_view(core: NodeCore, row: Row, names: list[Name]) -> dict[str, Any]:
    """Return a root as clients see it."""
    return {
        "cid": row.cid,
        "what": what(core, names),
        "sizeBytes": row.size_bytes,
        "keptBecause": list(row.why),
        "timestampUsedSec": row.used_unix_s,
    }


def gc_view(
    core: NodeCore, report: Report, named: list[tuple[str, list[Name]]], dry: bool
) -> dict[str, Any]:
    """Return a collection as clients see it; of very many roots the first are named."""
    return {
        "dryRun": dry,
        "usedBytesBefore": report.used_bytes,
        "freedBytes": report.freed_bytes,
        "blocks": report.blocks,
        "rootCount": len(report.roots),
        "roots": [{"cid": cid, "what": what(core, names)} for cid, names in named],
        "protectedBytes": report.protected,
    }


def what(core: NodeCore, names: list[Name]) -> str:
    """Return in words what a root is."""
    said = [_words(core, name) for name in names[:_NAMES_SHOWN]]
    more = len(names) - len(said)
    return ", ".join(said) + (f", and {more} more" if more else "") or "content"


def _words(core: NodeCore, name: Name) -> str:
    if name.kind == "app":
        return f"app {name.key}"
    if name.kind == "input":
        return f"input of job {name.key}"
    fold = core.folds.get(name.service)
    result = fold.results.get(name.key) if fold is not None else None
    job = result.document.job if result is not None else name.key
    return f"{name.kind} of job {job}"
