"""How a job's secrets come to its supervisor: once, whole, and over no file."""

import stat
from pathlib import Path

import pytest

from pairio_node.runner.supervisor import secret
from pairio_node.runner.supervisor.secret import SECRETS_FILE, handed, taken


def test_they_are_taken_once_and_nothing_is_left(tmp_path: Path) -> None:
    given = {"TOKEN": "correct horse", "KEY": "one\ntwo\n"}
    with handed(tmp_path, given):
        (pipe,) = tmp_path.iterdir()
        assert stat.S_ISFIFO(pipe.lstat().st_mode)
        assert stat.S_IMODE(pipe.lstat().st_mode) == 0o600
        assert taken(tmp_path) == given
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileNotFoundError):
            taken(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_value_holds_makes_no_other_name(tmp_path: Path) -> None:
    given = {"TOKEN": 'a\0OTHER\0b", "OTHER": "c\nOTHER\n' * 100}
    with handed(tmp_path, given):
        assert taken(tmp_path) == given


def test_the_most_that_a_job_may_have_comes_at_once(tmp_path: Path) -> None:
    given = {f"N{n}": "\N{SNOWMAN}\n" * 4096 for n in range(2)}
    with handed(tmp_path, given):
        assert taken(tmp_path) == given


def test_a_node_that_is_gone_took_them_along(tmp_path: Path) -> None:
    with handed(tmp_path, {"TOKEN": "correct horse"}):
        (tmp_path / SECRETS_FILE).rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / SECRETS_FILE)
    with pytest.raises(OSError, match="is gone"):
        taken(tmp_path)


def test_what_a_pipe_does_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret, "_SIZE_BYTES_MAX", 4096)
    with pytest.raises(OSError, match="does not take"), handed(tmp_path, {"TOKEN": "x" * 70_000}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_secrets_has_no_pipe(tmp_path: Path) -> None:
    with handed(tmp_path, {}):
        assert list(tmp_path.iterdir()) == []
