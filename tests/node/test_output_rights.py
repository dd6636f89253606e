"""A job that takes away the rights on what it made has failed: that is none of its node's fault."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from pairio_node.runner import RunOutput
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.process import ProcessRunner
from pairio_node.runner.supervise import Ended

NOBODY = 65534


def _as_no_root(do: Callable[[], Any]) -> Any:
    """Return what `do` gives to a user who is not root: in a child, where this one is."""
    if os.geteuid() != 0:
        return do()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(write_fd, json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert said, "it raised"
    return json.loads(said)


@pytest.mark.parametrize(
    ("closed", "says"),
    [
        ("tmp/out/0", "output 'made' cannot be read"),
        ("tmp/out", "output 'made' was not made"),
        ("tmp", "output 'made' was not made"),
        ("tmp/other/more", "output 'other/more' cannot be read"),
        ("tmp/other", ""),
    ],
)
def test_what_cannot_be_read_is_the_jobs_failure(closed: str, says: str, tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    work = tmp_path / "work"
    for name in ("out", "other"):
        (work / "tmp" / name).mkdir(parents=True)
    for name in ("out/0", "other/more"):
        (work / "tmp" / name).write_text("x")
    for path in (work, *work.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    (work / closed).chmod(0)
    spec: Any = SimpleNamespace(
        work_dir=work, outputs=(RunOutput("made", "made"),), bounds=JobBounds()
    )
    launcher: Any = None

    def outcome() -> tuple[str, str]:
        ended = Ended(0, "", "", b"", {})
        made = trio.run(ProcessRunner(launcher)._told, spec, ended, trio.Event())
        return made.status, made.error

    status, error = _as_no_root(outcome)
    (work / closed).chmod(0o700)
    assert status == ("failed" if says else "completed")
    assert says in error
