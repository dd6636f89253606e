"""A job that a warm worker did not begin runs cold; one that it began is not run again."""

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from pairio_node.runner import RunOutcome, supervise
from pairio_node.runner.bwrap import BwrapRunner
from pairio_node.runner.supervisor.runfile import add, take
from pairio_node.runner.zygote import link
from pairio_node.runner.zygote import runner as warm

_OUTCOME = {
    "exit_code": 0, "why": "", "error": "", "passed": None, "console": None,
    "console_lost_bytes": 0, "usage": {}, "samples": False,
}  # fmt: skip


class Trial:
    """A warm runner with a host whose answer `start` stands for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.made = folder / "tmp" / "out"
        self.made.parent.mkdir()
        self.cold: list[bool] = []  # for each cold run, whether it found what a warm one made
        self.failed: list[str] = []
        self.start: Callable[[Any], Awaitable[int]] = self._ended

        async def cold(_: Any, spec: Any, cancel: trio.Event) -> RunOutcome:
            self.cold.append(self.made.exists())
            return RunOutcome("completed", "", {}, b"", {})

        monkeypatch.setattr(BwrapRunner, "run", cold)
        for name, value in (("app_of", "app"), ("_hand_over", None), ("request_of", {}),
                            ("_limits", {}), ("_targets", []), ("_streams", None)):  # fmt: skip
            monkeypatch.setattr(warm, name, lambda *_, value=value: value)

    async def _ended(self, request: Any) -> int:
        """The job has run to its end; its console is in a file."""
        self.made.touch()
        fd = take(self.folder)
        add(fd, "supervisor", os.getpid())
        add(fd, "outcome", _OUTCOME)
        os.close(fd)
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()

    async def run(self) -> RunOutcome:
        runner = warm.WarmRunner.__new__(warm.WarmRunner)
        taken = SimpleNamespace(host=SimpleNamespace(start=self.start), kind="zygote")
        pool: Any = SimpleNamespace(
            take=lambda *_: taken,
            failed=lambda app, worker, why: self.failed.append(why),
            give_back=lambda _: None,
        )
        launcher: Any = SimpleNamespace(alive="alive", groups=None)
        plan = supervise.Plan([], {}, None, 1, 1, self.folder, True)
        vars(runner).update(pool=pool, _launcher=launcher)
        vars(runner).update(_bare_plan=lambda *_: plan, _job_text=lambda *_: "")
        spec: Any = SimpleNamespace(work_dir=self.folder, secrets={}, restart_grace_s=1)
        with trio.fail_after(10):
            return await runner.run(spec, trio.Event())


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(tmp_path, monkeypatch)


async def test_a_job_that_has_ended_warm_is_not_run_again(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(supervise, "read_console", full)
    outcome = await trial.run()
    assert (outcome.status, trial.cold) == ("infra", [])
    assert "too many open files" in outcome.error


async def test_what_a_host_left_that_begins_no_job_is_gone_when_it_runs_cold(trial: Trial) -> None:
    async def refuses(_: Any) -> int:
        trial.made.touch()
        raise link.HostGone("no worker is ready")

    trial.start = refuses
    outcome = await trial.run()
    assert (outcome.status, trial.cold) == ("completed", [False])
    assert trial.failed == ["no worker is ready"]


async def test_a_job_whose_host_says_nothing_in_time_is_ended_and_not_run_cold(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(warm, "ask_to_end", ended.append, raising=False)
    monkeypatch.setattr(link, "_ANSWER_S", 0.01)
    host = link.HostLink(SimpleNamespace())  # type: ignore[arg-type]
    host._channel, theirs = socket.socketpair()
    host._channel.setblocking(False)
    trial.start = host.start
    with theirs:
        outcome = await trial.run()
    assert (outcome.status, trial.cold, ended) == ("infra", [], [trial.folder])
    assert trial.failed == ["the host of warm workers does not answer in time"]
