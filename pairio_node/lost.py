"""What clients are told of results whose content nobody holds, in plain words."""

from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState, ResultInfo
from pairio_protocol.limits import LOST_PATIENCE_MS

__all__ = ["lost_words"]

_NOWHERE = "held by no node that can be reached"


def lost_words(
    core: NodeCore, service: str, state: RequestState, result: ResultInfo | None
) -> str | None:
    """Say what of a job is lost and what is done about it; None when nothing is. `result` is what
    the request is shown with."""
    fold = core.fold(service)
    if core.coordinator.is_held_back(state.id):
        wait_s = LOST_PATIENCE_MS // 1000
        return (
            f"there is a result, but its outputs are {_NOWHERE}; "
            f"the job is computed again if nobody has them within {wait_s} s"
        )
    if result is not None and fold.is_lost(result.cid):
        by = fold.why_lost(result.cid)[0]
        return f"its outputs are {_NOWHERE}; computed again, by request {by.id}"
    if result is not None:
        if core.contents.is_doubted(result.cid):
            return f"its outputs are {_NOWHERE} just now; asked again"
        return None
    resolution = fold.resolve(state.job)
    if resolution.lacks:
        jobs = ", ".join(resolution.lacks)
        return f"the outputs of input job {jobs} are {_NOWHERE}; it is computed again"
    lost = fold.lost_result(resolution.job, state.document) if resolution.job else None
    if lost is not None:
        return f"the outputs of its result {lost.cid} are {_NOWHERE}; computed again"
    if core.contents.is_in_question(resolution.upstream):
        return f"the outputs of an input job are looked for: they may be {_NOWHERE}"
    return None
