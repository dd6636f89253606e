"""In a notebook: one bar that moves in its place, also for jobs that say how far they are."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pairio.client import BatchProgress
from pairio.client._progress import ProgressBar


class Notebook:
    """What IPython shows: each display by its place, as it was last."""

    def __init__(self) -> None:
        self.places: list[list[str]] = []

    def display(self, html: str, *, display_id: bool) -> Any:
        assert display_id
        place = [html]
        self.places.append(place)
        return SimpleNamespace(update=lambda newer: place.append(newer))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    vars(ipython).update(get_ipython=lambda: shell, display=display)
    vars(display).update(HTML=str, display=made.display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("pairio.client._progress._PAUSE_S", 0.0)
    return made


def test_a_bar_moves_in_its_place(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    bar.show(BatchProgress(total=4, running=2))
    bar.show(BatchProgress(total=4, running=1, completed=1, partly=0.5))
    bar.show(BatchProgress(total=4, completed=4), last=True)
    [place] = notebook.places
    assert ["0/4 done" in place[0], "1/4 done (38%)" in place[1], "4/4 done" in place[2]] == [
        True
    ] * 3
    assert "width:12.50%" in place[1]
    assert capsys.readouterr().err == ""


def test_ipython_on_a_terminal_is_no_notebook(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace(config={}))
    ProgressBar().show(BatchProgress(total=1), last=True)
    assert notebook.places == []
