"""`[rules]` in node.toml: read into plain data, hours by local time, nonsense refused in words."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pairio_node.config import NodeConfig, load_config
from pairio_node.errors import UserError
from pairio_node.owner_rules import closed_rules, parse_hours, watch_hours
from pairio_node.transport.memory import MemoryNetwork
from pairio_protocol.owner import OwnerRules
from tests.node.node_lab import running

#: 2026-01-05 is a Monday.
WEEK = {name: 5 + i for i, name in enumerate(("mon", "tue", "wed", "thu", "fri", "sat", "sun"))}


def _at(text: str) -> datetime:
    day, _, time = text.partition(" ")
    hour, _, minute = time.partition(":")
    return datetime(2026, 1, WEEK[day], int(hour), int(minute))


def _load(path: Path, text: str) -> NodeConfig:
    (path / "node.toml").write_text(text)
    return load_config(path / "node.toml", {})


def test_rules_are_read_as_the_core_takes_them(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        cpus = 8
        [rules]
        hours = "22:00-06:00"
        jobs_max = 2
        submitters = ["ada", "bob"]
        [rules.services.lab]
        apps = ["hello_world", "align/bwa"]
        hours = ["mon-fri 19:00-07:00", "sat,sun"]
        cpus = 0.5
        memory_gb = 2
        gpus = 0
        time_s = 60
        """,
    )
    assert [rule.core for rule in config.rules] == [
        OwnerRules(submitters=("ada", "bob"), jobs_max=2, hours="22:00-06:00"),
        OwnerRules(
            "lab",
            apps=("hello_world", "align/bwa"),
            cpu_millicores=500,
            memory_mib=2048,
            gpus=0,
            time_ms=60_000,
            hours="mon-fri 19:00-07:00, sat,sun",
        ),
    ]
    assert [len(rule.windows) for rule in config.rules] == [1, 2]
    assert _load(tmp_path, "cpus = 8\n").rules == ()
    assert _load(tmp_path, "[rules]\n").rules == ()


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-18:00", ["mon 8:00", "sun 17:59"], ["mon 7:59", "mon 18:00"]),
        ("22:00-06:00", ["mon 22:00", "tue 5:59", "sun 0:00"], ["tue 6:00", "tue 21:59"]),
        ("mon-fri 19:00-07:00", ["mon 19:00", "sat 6:59"], ["mon 6:59", "sat 19:00", "sun 3:00"]),
        ("sat,sun", ["sat 0:00", "sun 23:59"], ["fri 23:59", "mon 0:00"]),
        ("Fri-Mon", ["fri 1:00", "mon 1:00"], ["tue 1:00", "thu 23:00"]),
        ("wed 12:00-24:00", ["wed 23:59"], ["thu 0:00", "wed 11:59"]),
        ("00:00-24:00", ["mon 0:00", "sun 23:59"], []),
    ],
)
def test_hours_hold_by_day_and_time(hours: str, inside: list[str], outside: list[str]) -> None:
    window = parse_hours(hours, "rules.hours")
    assert [at for at in inside if not window.holds(_at(at))] == []
    assert [at for at in outside if window.holds(_at(at))] == []


@pytest.mark.parametrize(
    "hours",
    [
        "",
        "22-6",
        "22:00",
        "25:00-26:00",
        "10:60-11:00",
        "24:00-06:00",
        "08:00-08:00",
        "someday",
        "mon-",
        "mon,,tue",
        "mon 08:00-09:00 x",
        "08:00-09:00 mon",
        "8:00-9:00",
        "mon -fri",
    ],
)
def test_hours_that_are_none_are_refused(hours: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no hours|rules.hours is \[''\]") as caught:
        _load(tmp_path, f'[rules]\nhours = ["{hours}"]\n')
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules = 1", "setting rules is 1"),
        ("[rules]\napp = ['x']", "unknown rule rules.app"),
        ("[rules]\nservices = 1", "no table of services"),
        ("[rules.services]\nlab = 1", "setting rules.services.lab is 1"),
        ("[rules.services.lab]\nquota = 1", "unknown rule rules.services.lab.quota"),
        ("[rules]\napps = []", "setting rules.apps is []"),
        ("[rules]\napps = 'x'", "setting rules.apps is 'x'"),
        ("[rules]\napps = ['a/b/c']", "'a/b/c' is no app"),
        ("[rules]\napps = ['/b']", "'/b' is no app"),
        ("[rules]\nsubmitters = [1]", "setting rules.submitters is [1]"),
        ("[rules]\nsubmitters = ['']", "setting rules.submitters is ['']"),
        ("[rules]\ncpus = 0", "setting rules.cpus is 0"),
        ("[rules]\ncpus = nan", "setting rules.cpus is nan"),
        ("[rules]\ncpus = true", "setting rules.cpus is True"),
        ("[rules]\nmemory_gb = '4'", "setting rules.memory_gb is '4'"),
        ("[rules]\ngpus = -1", "setting rules.gpus is -1"),
        ("[rules]\ngpus = 1.5", "setting rules.gpus is 1.5"),
        ("[rules]\ntime_s = 0", "setting rules.time_s is 0"),
        ("[rules]\njobs_max = 0", "setting rules.jobs_max is 0"),
        ("[rules]\njobs_max = 100000", "setting rules.jobs_max is 100000"),
        ("[rules]\nhours = 7", "setting rules.hours is 7"),
        ("[rules]\nhours = []", "setting rules.hours is []"),
    ],
)
def test_nonsense_is_refused_in_words(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _load(tmp_path, text)
    assert says in caught.value.message
    assert caught.value.hint


def test_only_rules_with_hours_close(tmp_path: Path) -> None:
    text = '[rules]\njobs_max = 1\n[rules.services.lab]\nhours = ["08:00-09:00", "sun"]\n'
    rules = _load(tmp_path, text).rules
    assert closed_rules(rules, _at("mon 8:30")) == frozenset()
    assert closed_rules(rules, _at("sun 12:00")) == frozenset()
    assert closed_rules(rules, _at("mon 9:00")) == {"lab"}


async def test_changes_of_the_hours_are_told_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rules = _load(tmp_path, '[rules]\nhours = "22:00-06:00"\n').rules
    clock: Iterator[str] = iter(
        ["mon 21:59", "mon 21:59", "mon 22:00", "mon 23:00", "tue 5:59", "tue 6:00"]
    )
    told: list[frozenset[str]] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        await watch_hours(rules, told.append, lambda: _at(next(clock)))
    assert told == [{""}, frozenset(), {""}]


async def test_rules_for_a_service_that_is_not_here_are_told_of(tmp_path: Path) -> None:
    text = "[rules.services.lab]\njobs_max = 1\n[rules.services.labb]\njobs_max = 2\n"
    rules = _load(tmp_path, text).rules
    async with running(MemoryNetwork(), tmp_path / "node", rules=rules) as node:
        assert node.status()["rulesForNone"] == ["lab", "labb"]
        await node.services.create("lab")
        assert node.status()["rulesForNone"] == ["labb"]
    told: list[str] = []
    async with running(MemoryNetwork(), tmp_path / "node", say=told.append, rules=rules):
        assert len(told) == 1
        assert "[rules.services.labb]" in told[0]
        assert "no service 'labb' here" in told[0]


async def test_without_hours_nobody_watches(tmp_path: Path) -> None:
    rules = _load(tmp_path, "[rules]\njobs_max = 1\n").rules
    with trio.fail_after(1):
        await watch_hours(rules, lambda _: None)
