"""The command lines in this process, against a fake node."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sdk.fake_node import FakeNode


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNode]:
    """A fake node that PAIRIO_API_URL and PAIRIO_API_KEY name."""
    monkeypatch.setenv("PAIRIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    with FakeNode() as fake:
        monkeypatch.setenv("PAIRIO_API_URL", fake.url)
        monkeypatch.setenv("PAIRIO_API_KEY", fake.token)
        yield fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `pairio` (or another program) with arguments and return what it left."""

    def command(*arguments: str, program: str = "pairio") -> Ran:
        from pairio_cli import main, node_main

        monkeypatch.setattr(sys, "argv", [program, *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            {"pairio": main, "pairio-node": node_main}[program].main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        code = left.value.code
        assert isinstance(code, int)
        return Ran(code, out, err)

    return command
