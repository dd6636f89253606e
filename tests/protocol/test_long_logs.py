"""A log that grows long costs no more for each segment; what counts is the same either way."""

from typing import Any

import pytest

from pairio_protocol.context import Context, CoreConfig
from pairio_protocol.effects import Refuse
from pairio_protocol.machines.log import Log
from pairio_protocol.machines.logs import Logs
from pairio_protocol.messages import LogHeight
from pairio_protocol.records import End
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey

AUTHOR, ME = SigningKey(b"a" * 32), SigningKey(b"b" * 32)


class NothingDropped:
    def is_dropped(self, service: str, log_id: Any) -> bool:
        return False

    def keeps(self, service: str, log_id: Any) -> bool:
        return False

    def told_heights(self, service: str, bounds: Any) -> list[LogHeight]:
        return []


class Looks(list[Segment]):
    """Segments of a log, counting how many are looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.looks += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.looks += len(self)
        return super().__iter__()


@pytest.fixture
def chain() -> Chain:
    chain = Chain()
    create = {"op": "create", "name": "lab", "nonce": "00", "threshold": 1}
    add = {"op": "add", "member": "m", "key": AUTHOR.peer, "roles": ["compute"]}
    chain.add(chain.propose([{**create, "admins": [AUTHOR.peer]}, add], [AUTHOR], 0))
    return chain


def segments_of(chain: Chain, count: int) -> list[Segment]:
    made: list[Segment] = []
    for seq in range(count):
        prev = made[-1].hash if made else GENESIS
        end = End("request", "run", "attempt", "infra", "why", 0)
        made.append(Segment.seal(AUTHOR, chain.service, bytes(16), seq, 0, prev, [end]))
    return made


def test_a_segment_of_a_long_log_looks_at_few_others(chain: Chain) -> None:
    logs = Logs(Context(ME, CoreConfig(bytes(16), 0)), NothingDropped())
    made = segments_of(chain, 300)
    for segment in made[:-1]:
        logs.take(AUTHOR.peer, segment.encode(), chain)
    (log,) = logs.logs_of(chain.service).values()
    held = log.segments = Looks(log.segments)
    held.looks = 0
    assert logs.take(AUTHOR.peer, made[-1].encode(), chain).accepted == [made[-1]]
    assert held.looks < 60  # bisection and the last few, of 299


def test_what_counts_is_the_same_with_and_without_what_is_known(chain: Chain) -> None:
    made = segments_of(chain, 5)
    for known in range(6):
        assert Log(list(made)).count_accepted(chain, known) == 5
    op = {"op": "remove", "member": "m"}
    other = {"op": "admins", "admins": [ME.peer], "threshold": 1}
    chain.add(chain.propose([other], [AUTHOR, ME], 1))
    chain.add(chain.propose([op], [ME], 2))
    for known in range(6):  # cut at 0: nothing counts, whatever was known before
        assert Log(list(made)).count_accepted(chain, known) == 0


def test_a_conflict_deep_in_a_long_log_is_found(chain: Chain) -> None:
    made = segments_of(chain, 50)
    log = Log(list(made), accepted=50)
    end = End("request", "run", "attempt", "infra", "another", 0)
    for seq in (0, 1, 25, 49):
        rival = Segment.seal(AUTHOR, chain.service, bytes(16), seq, 0, made[seq].prev, [end])
        assert log.conflict(rival) is made[seq]
        assert log.conflict(made[seq]) is None


def test_nothing_was_refused_that_is_right(chain: Chain) -> None:
    context = Context(ME, CoreConfig(bytes(16), 0))
    logs = Logs(context, NothingDropped())
    for segment in reversed(segments_of(chain, 20)):  # parked, then all at once
        logs.take(AUTHOR.peer, segment.encode(), chain)
    (log,) = logs.logs_of(chain.service).values()
    assert log.accepted == 20
    assert not [e for e in context.effects if isinstance(e, Refuse)]
