"""Planted defects: the shipped core with one thing wrong, and the laws that must notice.

Each is a patch of one function; `python tests/simulation/defects.py` plants them one by one, lives
through seeds until a law breaks, and fails when a defect goes unnoticed or when a law notices that
is not among those named.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from laws import Broken
from scenario import run_seed

from pairio_protocol import allowlist, commands, core, disk, fold, intake, service
from pairio_protocol.machines import (
    bidder,
    contents,
    coordinator,
    heights,
    log,
    logs,
    replication,
    retention,
    sync,
    worker,
)
from pairio_protocol.messages import Ack

#: Lives until a defect has to have shown itself; the rarest does in about one of a hundred, which
#: leaves it unseen in 200 lives now and then, and in 400 hardly ever.
SEEDS = 400


class Defect:
    """A patch, and the laws one of which must break."""

    def __init__(self, name: str, laws: set[str], *patches: tuple[Any, str, Any]) -> None:
        self.name, self.laws, self.patches = name, laws, patches

    @contextmanager
    def planted(self) -> Iterator[None]:
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in self.patches]
        for owner, name, wrong in self.patches:
            setattr(owner, name, wrong)
        try:
            yield
        finally:
            for owner, name, right in before:
                setattr(owner, name, right)


ANY_END = {"every job ends", "converged", "calls are answered"}


def _ack_early(self: Any, peer: str, push: Any) -> None:
    taken = self._core.intake.take(peer, push.segment)
    if push.ack and taken is not None:
        self._ctx.send(peer, Ack((taken,)))


def _count_without(*left_out: str) -> Callable[[Any, Any], int]:
    """`Log.count_accepted` without some of its rules."""

    def count(self: Any, chain: Any, known: int = 0) -> int:
        if not self.segments:
            return 0
        author = self.segments[0].log.author
        kept = [(c.epoch, self._kept(c)) for c in chain.cuttings(author)]
        for index, segment in enumerate(self.segments):
            folded = chain.at(segment.epoch)
            forked = self.fork_at is not None and segment.last_seq >= self.fork_at
            if forked and "fork" not in left_out:
                return index
            if folded is None or ("role" not in left_out and not folded.roles_of(author)):
                return index
            if "cut" not in left_out and any(segment.epoch < e and index >= n for e, n in kept):
                return index
        return len(self.segments)

    return count


def _longest(siblings: list[Any], *_: Any) -> Any:
    """Fork choice by what is longest so far: the first that came has most descendants."""
    return siblings[0]


def _first_come(self: Any) -> None:
    """Fork choice by arrival: the first child stays."""
    links = [self._known[self._root]]
    while children := self._children.get(links[-1].cid):
        links.append(self._known[children[0]])
    self._links = links
    self._folds = [link.folded for link in links]
    self._now = self._folds[-1]
    self._cuttings = {}
    for link in links:
        for key in link.lost:
            self._cuttings.setdefault(key, []).append(service.Cutting(link.seq, link.cuts))


def _losers_list(self: Any, epoch: int) -> Any:
    """The list at an epoch as a losing branch had it, where there is one."""
    winners = {link.cid for link in self._links}
    lists = [k.folded for cid, k in sorted(self._known.items()) if k.seq == epoch]
    losing = [k.folded for cid, k in self._known.items() if k.seq == epoch and cid not in winners]
    return (losing or lists or [None])[0]


def _lose_silently(self: Any, errand: Any, why: str) -> None:
    self._end_attempt(errand)  # and never opens it again


def _kill_for_one(self: Any, attempt: str, peer: str) -> None:
    task = self.tasks.get(attempt)
    if task is not None:
        task.coordinators.discard(peer)
        self._kill(task, "canceled")


_RIGHT_ON_RESULT = coordinator.Coordinator.on_result


def _move_answers(self: Any, service_id: str, result: Any) -> None:
    _RIGHT_ON_RESULT(self, service_id, result)
    known = self._hooks.fold(service_id)
    for name, cid in list(known.pins.items()):
        state = known.requests.get(name)
        info = known.results.get(cid)
        if state is not None and info is not None and info.document.job == result.document.job:
            known.pins[name] = state.answer = result.cid


def _fits_any(self: Any, job: dict[str, Any], cid: str) -> bool:
    return True


def _held_at_once(self: Any, peer: str, message: Any) -> None:
    from pairio_protocol.messages import Held

    self._ctx.send(peer, Held(message.ticket, True))


def _count_me_unstored(self: Any, copies: Any) -> None:
    if copies.have_blocks:
        copies.holders.add(self._ctx.me)


def _frontier_off_by_one(right: Any) -> Any:
    def wrong(self: Any, peer: str, message: Any) -> None:
        keep = self._send_segments
        self._send_segments = lambda p, s, segments: keep(p, s, segments[1:])
        try:
            right(self, peer, message)
        finally:
            self._send_segments = keep

    return wrong


def _continue_old_log(self: Any, service_id: str, chain: Any) -> Any:
    from pairio_protocol.ids import LogId

    self._ctx.config.__dict__["boot"] = self._ctx.me.encode()[-16:]
    return LogId(self._ctx.me, self._ctx.config.boot, 0)


def _answer_on_seal(self: Any, service_id: str, state: Any) -> None:
    from pairio_protocol.effects import Reply

    submit = self._submits.pop(state.id, None)
    if submit is not None:
        self._ctx.emit(Reply(submit.call, {"request": submit.request, "job": submit.job}))


def _say_replicated(self: Any, submit: Any) -> None:
    from pairio_protocol.effects import Reply

    if submit.committed:
        self._submits.pop(submit.request, None)
        self.replicated[submit.request] = 5
        self._ctx.emit(Reply(submit.call, {"request": submit.request, "job": submit.job}))


def _pump_all(self: Any) -> None:
    for task in list(self.tasks.values()):
        if not task.executing:
            self._start(task)


def _award_anybody(self: Any, service_id: str) -> Any:
    return [e for e in self._hooks.presence_here(service_id) if e.peer in self._ctx.connected]


def _take_early(self: Any, service_id: str, state: Any, seen: Any) -> None:
    self._hooks.take(service_id, state.id)


def _always_synced(self: Any, service_id: str) -> None:
    return None


def _never(*_: Any, **__: Any) -> None:
    return None


def _all_may(roles: Any, record: Any) -> bool:
    return True


def _safe_at_once(self: Any) -> bool:
    return True


def _lose_at_once(self: Any, look: Any) -> None:
    """Take everybody's no for granted."""
    self._doubt(look)
    self._lose(look)


right_differing = heights.Heights.differing

DEFECTS = [
    Defect("ack before commit", {"stored before acked"}, (disk.Disk, "on_push", _ack_early)),
    Defect(
        "told before commit",
        {"stored before told"},
        (commands.Commands, "on_own_request", _answer_on_seal),
    ),
    Defect(
        "replication is made up",
        {"replicated is true"},
        (commands.Commands, "_answer", _say_replicated),
    ),
    Defect(
        "replica count ignored",
        {"safe is true", "safe results are there"},
        (replication.Copies, "safe", property(_safe_at_once)),
    ),
    Defect(
        "held before it is",
        {"held is true", "safe is true", "safe results are there"},
        (replication.Replication, "on_hold", _held_at_once),
    ),
    Defect(
        "held acked before outputs and document are on disk",
        {"held is true", "safe is true", "safe results are there"},
        (replication.Replication, "_count_me", _count_me_unstored),
        (disk.Disk, "is_stored", lambda self, segment: True),
    ),
    Defect(
        "fork counts",
        {"forks are void", "order of segments is nothing", "converged"},
        (log.Log, "count_accepted", _count_without("fork")),
    ),
    Defect(
        "forks unnoticed",
        {"order of segments is nothing", "converged", "logs are chains", "forks are void"}
        | {"every job ends", "answers are remembered"},
        (log.Log, "conflict", _never),
    ),
    Defect(
        "proof of forks is not passed on",
        {"converged", "order of segments is nothing"},
        (logs.Logs, "on_forks", lambda *_: False),
    ),
    Defect(
        "cut ignored",
        {"cuts hold", "converged", "order of segments is nothing"},
        (log.Log, "count_accepted", _count_without("cut")),
    ),
    Defect(
        "role of the author ignored",
        {"members only", "converged", "every job ends"},
        (log.Log, "count_accepted", _count_without("role", "cut")),
        (allowlist.Folded, "roles_of", lambda self, peer: ("admin", "compute", "submit")),
    ),
    Defect(
        "record roles ignored",
        {"roles rule records", "order of segments is nothing"},
        (intake.Intake, "_may", staticmethod(_all_may)),
    ),
    Defect(
        "accept by arrival order",
        {"order of changes is nothing", "converged"},
        (service.Chain, "_choose", _first_come),
    ),
    Defect(
        "fork choice by length",
        {"order of changes is nothing", "converged"},
        (service, "_winner", _longest),
    ),
    Defect(
        "grant from a losing branch",
        {"members only", "roles rule records", "order of segments is nothing", "converged"},
        (
            service.Chain,
            "at",
            _losers_list,
        ),
    ),
    Defect("forget a lease", ANY_END, (coordinator.Coordinator, "_lose", _lose_silently)),
    Defect(
        "cancel kills what another wants",
        {"cancel is narrow"},
        (worker.Worker, "cancel", _kill_for_one),
    ),
    Defect(
        "a canonical change moves answers",
        {"answers stay"},
        (coordinator.Coordinator, "on_result", _move_answers),
    ),
    Defect(
        "results without outputs taken",
        {"answers fit", "every job ends"},
        (fold.ServiceFold, "_fits", _fits_any),
    ),
    Defect(
        "sync off by one",
        {"converged", "every job ends"},
        (logs.Logs, "on_frontier", _frontier_off_by_one(logs.Logs.on_frontier)),
    ),
    Defect(
        "no sync",
        {"converged", "every job ends"},
        (sync.Sync, "send_digest", _never),
        (sync.Sync, "_compare", _never),
    ),
    Defect(
        "differing ranges overlooked",
        {"converged", "every job ends"},
        (heights.Heights, "differing", lambda self, summary: right_differing(self, summary)[1:]),
        (sync.Sync, "_compare", _never),
    ),
    Defect(
        "continue an old log",
        {"one hash per seq", "calls are answered"},
        (logs.Logs, "_own_id", _continue_old_log),
    ),
    Defect("capacity ignored", {"capacity holds"}, (worker.Worker, "_pump", _pump_all)),
    Defect(
        "award to whoever is there",
        {"runs are wanted"},
        (coordinator.Coordinator, "_candidates", _award_anybody),
    ),
    Defect(
        "take at once", {"take is the last resort"}, (bidder.Bidder, "_reach_or_take", _take_early)
    ),
    Defect("no take", ANY_END, (bidder.Bidder, "_reach_or_take", _never)),
    Defect(
        "answers forgotten",
        {"calls are answered", "every job ends"},
        (commands.Commands, "_answer", _never),
    ),
    Defect(
        "wishes of a lost role forgotten",
        {"every job ends"},
        (intake.Intake, "see_to_all", _never),
    ),
    Defect(
        "results of dropped logs are not kept",
        {"answers are remembered", "converged", "every job ends", "order of segments is nothing"},
        (retention.Retention, "_worth_keeping", lambda self, fold, logs: set()),
    ),
    Defect(
        "logs dropped with what is open",
        {"every job ends", "answers are remembered", "calls are answered", "converged"},
        (retention.Retention, "_is_over", lambda *_: True),
    ),
    Defect(
        "hits are answered unlooked",
        {"hits are there", "asked again"},
        (contents.Contents, "is_there", lambda *_: True),
    ),
    Defect(
        "what is lost is not computed again",
        {"every job ends", "asked again"},
        (core.NodeCore, "compute_again", lambda *_: ""),
    ),
    Defect(
        "nobody is asked before content is lost",
        {"lost is lost"},
        (contents.Contents, "_ask", _lose_at_once),
    ),
    Defect(
        "losing branches not passed on",
        {"converged", "order of changes is nothing"},
        (
            service.Chain,
            "changes",
            lambda self, start=0, after="", most=None: [
                k.change for k in self._links if (k.seq, k.cid) > (start, after)
            ][:most],
        ),
    ),
]


def caught(defect: Defect) -> tuple[int, str] | None:
    """Return (seed, law) of the first seed in which a law that it names notices the planted defect;
    else of the first in which any does. Which law is the first to break in a life is chance."""
    first: tuple[int, str] | None = None
    with defect.planted():
        for seed in range(SEEDS):
            try:
                run_seed(seed, 3 + seed % 5)
            except Broken as broken:
                first = first or (seed, broken.law)
                if broken.law in defect.laws:
                    return seed, broken.law
    return first


def main() -> int:
    import multiprocessing

    chosen = [d for d in DEFECTS if not sys.argv[1:] or d.name in sys.argv[1:]]
    with multiprocessing.Pool(2) as pool:
        found = pool.map(_by_name, [d.name for d in chosen], chunksize=1)
    bad = 0
    for defect, result in zip(chosen, found, strict=True):
        good = result is not None and result[1] in defect.laws
        bad += not good
        print(f"{'caught ' if good else 'MISSED '} {defect.name}: {result}")
    print(f"planted: {len(chosen)}, caught by a named law: {len(chosen) - bad}")
    return 1 if bad or not chosen else 0


def _by_name(name: str) -> tuple[int, str] | None:
    return caught(next(d for d in DEFECTS if d.name == name))


if __name__ == "__main__":
    sys.exit(main())
