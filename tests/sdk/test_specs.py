"""Apps from their specification alone, as in the original."""

import json
from pathlib import Path
from typing import Any

import pytest

from pairio.errors import PairioError
from pairio.sdk import App, BaseModel, OutputFile, ProcessorBase, _specs

SPEC: dict[str, Any] = {
    "name": "a",
    "description": "d",
    "processors": [{"name": "p", "label": "P", "parameters": [{"name": "n", "type": "int"}]}],
}


class _Context(BaseModel):
    output: OutputFile


class _Other(ProcessorBase):
    name = "other"

    @staticmethod
    def run(context: _Context) -> None:
        raise AssertionError("not here")


def test_a_specification_gives_itself_again() -> None:
    app = App.from_spec(SPEC)
    assert app.get_spec() == SPEC
    app.add_processor(_Other)
    assert [p["name"] for p in app.get_spec()["processors"]] == ["p", "other"]
    with pytest.raises(ValueError, match="two processors"):
        app.add_processor(_Other)
    assert len(SPEC["processors"]) == 1, "the caller's is left alone"


def test_it_is_read_from_a_path_and_a_file_uri(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    assert App.from_spec_uri(str(path)).get_spec() == SPEC
    assert App.from_spec_uri(path.as_uri()).get_spec() == SPEC


def test_a_page_on_github_is_read_as_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(uri: str) -> bytes:
        asked.append(uri)
        return json.dumps(SPEC).encode()

    monkeypatch.setattr(_specs, "_bytes", read)
    App.from_spec_uri("https://github.com/me/repo/blob/main/app/spec.json")
    assert asked == ["https://raw.githubusercontent.com/me/repo/main/app/spec.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "no app specification"),
        ('{"name": "a"}', "no app specification"),
        ('{"name": "a", "processors": [{}]}', "no app specification"),
        ('{"name": "a", "processors": [{"name": "p"}, {"name": "p"}]}', "two processors"),
        (" " * (1024 * 1024 + 1), "more than"),
    ],
)
def test_what_is_no_specification_is_said(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(PairioError, match=says):
        App.from_spec_uri(str(path))


@pytest.mark.parametrize("uri", ["/nowhere/spec.json", "ftp://h/spec.json", "http://127.0.0.1:9/x"])
def test_what_cannot_be_read_is_said(uri: str) -> None:
    with pytest.raises(PairioError, match="cannot read") as caught:
        App.from_spec_uri(uri)
    assert caught.value.hint
