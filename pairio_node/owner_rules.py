"""`[rules]` in node.toml: what the owner lets run here, and at which hours.

[rules]                      # for every service
hours = ["mon-fri 19:00-07:00", "sat,sun"]
jobs_max = 2

[rules.services.lab]         # for this one, in addition
apps = ["hello_world", "align/bwa"]
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import trio

from pairio_node.errors import UserError
from pairio_protocol.limits import TASKS_MAX, TIME_MS_MAX
from pairio_protocol.owner import OwnerRules

__all__ = [
    "HourRules",
    "Window",
    "closed_rules",
    "parse_hours",
    "parse_rules",
    "rules_for_none",
    "watch_hours",
]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIMES = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60
_LOOK_S = 15.0
_NAMES_MAX = 256
_SERVICES_MAX = 256
_HINT = 'use "22:00-06:00", "mon-fri 19:00-07:00", "sat,sun", or a list of such'


@dataclass(frozen=True)
class Window:
    """Minutes of the day from `start` to before `end`, on days 0 (Monday) to 6. One that ends
    before it starts goes on into the next day."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, at: datetime) -> bool:
        """Say whether a local time lies in it."""
        minute = at.hour * 60 + at.minute
        if self.start < self.end:
            return at.weekday() in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return at.weekday() in self.days
        return minute < self.end and (at - timedelta(days=1)).weekday() in self.days


@dataclass(frozen=True)
class HourRules:
    """Rules as the core takes them, with the windows in which they let jobs begin; none: always."""

    core: OwnerRules
    windows: tuple[Window, ...] = ()


def parse_hours(text: str, where: str) -> Window:
    """Return the window that `[DAYS] [HH:MM-HH:MM]` names, or raise UserError."""
    parts = text.lower().split()
    days, times = frozenset(range(7)), (0, _DAY_MINUTES)
    try:
        if not 1 <= len(parts) <= 2:
            raise ValueError
        if parts[0][:1].isalpha():
            days = _days(parts.pop(0))
        if parts:
            times = _times(parts.pop(0))
        if parts:
            raise ValueError
    except ValueError:
        raise UserError(f"{where}: {text!r} are no hours", hint=_HINT) from None
    return Window(days, *times)


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        found |= {(start + i) % 7 for i in range((end - start) % 7 + 1)}
    return frozenset(found)


def _times(text: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(text)
    if match is None:
        raise ValueError
    hours = [int(match[1]), int(match[3])]
    minutes = [int(match[2]), int(match[4])]
    start, end = (h * 60 + m for h, m in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end:
        raise ValueError
    return start, end


def parse_rules(raw: Any) -> tuple[HourRules, ...]:
    """Return the rules of the table `[rules]`, those for all services first.

    Raises:
        UserError: an unknown rule, a value of the wrong type or range.
    """
    if not isinstance(raw, dict):
        raise UserError(f"setting rules is {raw!r}", hint="give it a table: [rules]")
    services = raw.get("services", {})
    if not isinstance(services, dict) or len(services) > _SERVICES_MAX:
        raise UserError(
            "setting rules.services is no table of services", hint="[rules.services.NAME]"
        )
    common = {name: value for name, value in raw.items() if name != "services"}
    found = [_one("", common, "rules")] if common else []
    for name, table in services.items():
        where = f"rules.services.{name}"
        if not isinstance(table, dict) or not name:
            raise UserError(f"setting {where} is {table!r}", hint=f"give it a table: [{where}]")
        found.append(_one(name, table, where))
    return tuple(found)


def _one(service: str, table: dict[str, Any], where: str) -> HourRules:
    known = ("apps", "submitters", "hours", "cpus", "memory_gb", "gpus", "time_s", "jobs_max")
    for name in table:
        if name not in known:
            raise UserError(f"unknown rule {where}.{name}", hint=f"rules: {', '.join(known)}")
    apps = _names(table, "apps", where)
    for app in apps:
        if app.count("/") > 1 or app.startswith("/") or app.endswith("/"):
            raise UserError(f"{where}.apps: {app!r} is no app", hint="use APP or APP/PROCESSOR")
    given = table.get("hours")
    hours = (given,) if isinstance(given, str) else _names(table, "hours", where)
    cpus = _number(table, "cpus", where, 0.001, 4096)
    memory_gb = _number(table, "memory_gb", where, 0.001, 65536)
    time_s = _number(table, "time_s", where, 1, TIME_MS_MAX // 1000)
    core = OwnerRules(
        service=service,
        apps=apps,
        submitters=_names(table, "submitters", where),
        cpu_millicores=None if cpus is None else int(cpus * 1000),
        memory_mib=None if memory_gb is None else int(memory_gb * 1024),
        gpus=_whole(table, "gpus", where, 0, 1024),
        time_ms=None if time_s is None else int(time_s * 1000),
        jobs_max=_whole(table, "jobs_max", where, 1, TASKS_MAX),
        hours=", ".join(hours),
    )
    return HourRules(core, tuple(parse_hours(text, f"{where}.hours") for text in hours))


def _names(table: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    if name not in table:
        return ()
    value = table[name]
    texts = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
    if not texts or not 0 < len(value) <= _NAMES_MAX:
        raise UserError(
            f"setting {where}.{name} is {value!r}",
            hint=f"give it a list of 1 to {_NAMES_MAX} texts; leave it out to narrow nothing;"
            " compute = false lets nothing run",
        )
    return tuple(value)


def _number(
    table: dict[str, Any], name: str, where: str, low: float, high: float
) -> int | float | None:
    value = table.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # not so for NaN
        raise UserError(f"setting {where}.{name} is {value!r}", hint=f"use {low:g} to {high:g}")
    number: int | float = value
    return number


def _whole(table: dict[str, Any], name: str, where: str, low: int, high: int) -> int | None:
    value = _number(table, name, where, low, high)
    if value is not None and not isinstance(value, int):
        raise UserError(f"setting {where}.{name} is {value!r}", hint="use a whole number")
    return value


def closed_rules(rules: Collection[HourRules], at: datetime) -> frozenset[str]:
    """Return for which services rules are closed at a local time ("" for all services)."""
    return frozenset(
        rule.core.service
        for rule in rules
        if rule.windows and not any(window.holds(at) for window in rule.windows)
    )


def rules_for_none(rules: Collection[HourRules], known: Collection[str]) -> list[str]:
    """Return the services that rules name and that are not among the `known` names and ids: to be
    joined yet, or misspelt, and then the rules narrow nothing."""
    return sorted({r.core.service for r in rules if r.core.service} - set(known))


async def watch_hours(
    rules: Collection[HourRules],
    tell: Callable[[frozenset[str]], object],
    now: Callable[[], datetime] = datetime.now,
) -> None:
    """Tell whenever other rules are closed, until cancelled. The wall clock may jump, and the
    machine sleep: it is looked at, not waited for."""
    before: frozenset[str] = frozenset()
    while any(rule.windows for rule in rules):
        closed = closed_rules(rules, now())
        if closed != before:
            before = closed
            tell(closed)
        await trio.sleep(_LOOK_S)
