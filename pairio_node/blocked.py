"""Why a job is blocked, in plain words: what failed of that on which it rests."""

from pairio_protocol.core import NodeCore
from pairio_protocol.fold import ServiceFold
from pairio_protocol.printable import printable

__all__ = ["blocked_words"]

_REASON_LENGTH_MAX = 500


def blocked_words(core: NodeCore, service: str, blocked_by: str) -> str:
    """Say which job failed, and how, because of which another is blocked; `blocked_by` is that of
    its inputs' jobs which cannot give its output."""
    fold = core.fold(service)
    failed = fold.failed_below(blocked_by)
    reason = _reason(fold, failed)
    via = "" if failed == blocked_by else f" (input job {blocked_by} rests on it)"
    return f"input job {failed} failed{reason}{via}"


def _reason(fold: ServiceFold, job: str) -> str:
    """Return how a job failed, with a colon before it; nothing where that is not known."""
    definition = fold.definitions.get(job)
    resolved = fold.resolve(job).job if definition is not None else job
    result = fold.canonical(resolved, definition) if resolved is not None else None
    error = result.document.error if result is not None else ""
    words = " ".join(printable(error).split())[:_REASON_LENGTH_MAX]
    return f": {words}" if words else ""
