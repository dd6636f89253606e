"""The part of the SDK that authors of apps use: specs, contexts, files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import (  # noqa: UP035 - as the original's apps write it
    Any,
    ClassVar,
    List,
    Optional,
)

import pytest

from pairio.sdk import (
    App,
    BaseModel,
    Field,
    InputFile,
    OutputFile,
    ProcessorBase,
    get_secret,
    upload_additional_job_output,
)
from pairio_protocol.apps import PARAMETER_TYPES, validate_app

ROOT = Path(__file__).parents[2]
BUNDLE = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"


class Group(BaseModel):
    sub: int = Field(description="a nested one", default=7)


class Everything(BaseModel):
    input: InputFile = Field(description="an input")
    parts: List[InputFile] = Field(description="several")  # noqa: UP006
    output: OutputFile = Field(description="an output")
    text: str = Field(description="needed")
    count: int = Field(description="one of some", default=3, json_schema_extra={"options": [1, 3]})
    ratio: float = Field(default=1)
    flag: bool = Field(default=False)
    names: List[str] = Field(default_factory=lambda: ["a"])  # noqa: UP006
    numbers: list[float] = Field(default=[1, 2.5])
    flags: list[bool] = Field(default=[True])
    maybe: Optional[int] = Field(default=None)  # noqa: UP045
    perhaps: list[str] | None = Field(default=None)
    group: Group


class EverythingProcessor(ProcessorBase):
    name = "everything"
    description = "Uses every kind of field"
    label = "Everything"
    image = "me/image:1"
    executable = "/app/main.py"
    attributes = {"wip": True}  # noqa: RUF012 - as the original's apps write it

    @staticmethod
    def run(context: Everything) -> None:
        raise AssertionError("not here")


def _app(*processors: type[ProcessorBase]) -> App:
    app = App("all", description="An app")
    for processor in processors or (EverythingProcessor,):
        app.add_processor(processor)
    return app


def _processor(annotation: Any) -> type[ProcessorBase]:
    class Made(ProcessorBase):
        name = "made"

        @staticmethod
        def run(context: Any) -> None:
            raise AssertionError("not here")

    Made.run.__annotations__["context"] = annotation
    return Made


# -- the spec --------------------------------------------------------------------------------


def test_the_spec_has_every_field_with_its_type_default_and_options() -> None:
    spec = _app().get_spec()
    assert (spec["name"], spec["description"]) == ("all", "An app")
    [processor] = spec["processors"]
    assert {k: processor[k] for k in ("name", "description", "label", "image", "executable")} == {
        "name": "everything",
        "description": "Uses every kind of field",
        "label": "Everything",
        "image": "me/image:1",
        "executable": "/app/main.py",
    }
    assert processor["attributes"] == [{"name": "wip", "value": True}]
    assert processor["inputs"] == [
        {"name": "input", "description": "an input"},
        {"name": "parts", "description": "several", "list": True},
    ]
    assert processor["outputs"] == [{"name": "output", "description": "an output"}]
    shown = [
        (p["name"], p["type"], p.get("defaultValue"), p.get("options"))
        for p in processor["parameters"]
    ]
    assert shown == [
        ("text", "str", None, None),
        ("count", "int", 3, [1, 3]),
        ("ratio", "float", 1, None),
        ("flag", "bool", False, None),
        ("names", "List[str]", ["a"], None),
        ("numbers", "List[float]", [1, 2.5], None),
        ("flags", "List[bool]", [True], None),
        ("maybe", "Optional[int]", None, None),
        ("perhaps", "Optional[List[str]]", None, None),
        ("group.sub", "int", 7, None),
    ]
    assert {p["type"] for p in processor["parameters"]} <= set(PARAMETER_TYPES)


def test_the_spec_is_one_that_a_service_takes() -> None:
    spec = _app().get_spec()
    app = validate_app({**spec, "bundle": BUNDLE})
    assert app["processors"][0]["name"] == "everything"


@pytest.mark.parametrize(
    ("annotation", "default", "says"),
    [
        (dict, ..., "use str, int, float, bool"),
        (list[dict[str, int]], ..., "use str, int, float, bool"),
        (int | str, ..., "use str, int, float, bool"),
        (int, "three", "the default of x is 'three', which is no int"),
        (int, True, "the default of x is True, which is no int"),
        (bool, 1, "the default of x is 1, which is no bool"),
        (list[int], [1, "2"], "which is no List[int]"),
        (int | None, "three", "which is no Optional[int]"),
    ],
)
def test_a_wrong_parameter_is_named_in_words(annotation: Any, default: Any, says: str) -> None:
    from pydantic import create_model

    model = create_model("M", x=(annotation, default))
    with pytest.raises(TypeError) as caught:
        _app(_processor(model)).get_spec()
    assert "x" in str(caught.value)
    assert says in str(caught.value)


def test_a_wrong_option_is_named() -> None:
    class M(BaseModel):
        x: int = Field(json_schema_extra={"options": [1, "two"]})

    with pytest.raises(TypeError, match="the option of x is 'two', which is no int"):
        _app(_processor(M)).get_spec()


def test_a_processor_without_a_model_or_a_name_is_refused() -> None:
    class NoName(ProcessorBase):
        pass

    class NoModel(ProcessorBase):
        name = "nomodel"

        @staticmethod
        def run(context) -> None:  # type: ignore[no-untyped-def]
            raise AssertionError("not here")

    with pytest.raises(TypeError, match="NoName has no `name`"):
        _app(NoName)
    with pytest.raises(TypeError, match="takes one parameter, annotated"):
        _app(NoModel).get_spec()
    with pytest.raises(ValueError, match="two processors are called 'everything'"):
        _app(EverythingProcessor, EverythingProcessor)


# -- running -----------------------------------------------------------------------------------

APP = """
from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase

class Group(BaseModel):
    sub: int = Field(default=7)

class Context(BaseModel):
    input: InputFile
    parts: list[InputFile]
    output: OutputFile
    text: str
    group: Group

class P(ProcessorBase):
    name = "p"

    @staticmethod
    def run(context: Context) -> None:
        text = open(context.input.download()).read()
        parts = [open(p.get_local_file_name()).read() for p in context.parts]
        dumped = sorted(context.model_dump())
        with open("out.txt", "w") as file:
            file.write(f"{text} {parts} {context.text} {context.group.sub} {dumped}")
        if context.text != "forget":
            context.output.upload("out.txt")

app = App("a", description="")
app.add_processor(P)
if __name__ == "__main__":
    app.run()
"""


def _run(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    (folder / "main.py").write_text(APP)
    clean = {k: v for k, v in os.environ.items() if k not in ("SPEC_OUTPUT_FILE", "JOB_ID")}
    return subprocess.run(
        [sys.executable, "main.py"],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )


def _job(folder: Path, **changed: Any) -> dict[str, str]:
    for name in ("in", "p0", "p1"):
        (folder / name).write_text(name)
    job = {
        "processor": "p",
        "list_inputs": ["parts"],
        "inputs": [
            {"name": "input", "base_name": "in.txt", "path": str(folder / "in")},
            {"name": "parts[1]", "base_name": "1", "path": str(folder / "p1")},
            {"name": "parts[0]", "base_name": "0", "path": str(folder / "p0")},
        ],
        "outputs": [{"name": "output", "base_name": "o.txt", "path": str(folder / "result")}],
        "parameters": [{"name": "text", "value": "t"}, {"name": "group.sub", "value": 9}],
        "additional_outputs": str(folder / "more"),
        **changed,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return {"PAIRIO_JOB_FILE": str(folder / "job.json")}


def test_a_run_with_spec_output_file_writes_the_spec(tmp_path: Path) -> None:
    run = _run(tmp_path, SPEC_OUTPUT_FILE=str(tmp_path / "spec.json"))
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads((tmp_path / "spec.json").read_text())["processors"][0]["name"] == "p"


def test_a_job_gets_its_context_and_leaves_its_output(tmp_path: Path) -> None:
    run = _run(tmp_path, **_job(tmp_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "result").read_text() == (
        "in ['p0', 'p1'] t 9 ['group', 'input', 'output', 'parts', 'text']"
    )
    assert not (tmp_path / "out.txt").exists(), "upload deletes the local file"


def test_an_output_that_was_not_uploaded_fails_the_job(tmp_path: Path) -> None:
    run = _run(tmp_path, **_job(tmp_path, parameters=[
        {"name": "text", "value": "forget"}, {"name": "group.sub", "value": 9}]))  # fmt: skip
    assert run.returncode == 1
    assert "output 'output' was not uploaded" in run.stderr


def test_an_unknown_processor_and_a_run_by_hand_are_said(tmp_path: Path) -> None:
    unknown = _run(tmp_path, **_job(tmp_path, processor="nix"))
    assert (unknown.returncode, "no processor 'nix'" in unknown.stderr) == (1, True)
    by_hand = _run(tmp_path)
    assert by_hand.returncode == 1
    assert "pairio app install SERVICE DIR" in by_hand.stderr
    assert "Traceback" not in unknown.stderr + by_hand.stderr


# -- files ---------------------------------------------------------------------------------------


def test_an_input_is_read_by_url_path_or_copy(tmp_path: Path) -> None:
    from urllib.request import urlopen

    path = tmp_path / "odd name #1 %41?.txt"
    path.write_text("content")
    file = InputFile("i", str(path), "name.txt")
    assert (file.name, file.file_base_name, file.is_local()) == ("i", "name.txt", True)
    with urlopen(file.get_url()) as opened:
        assert opened.read() == b"content"
    copy = file.download()
    assert copy.endswith("-name.txt")
    assert Path(copy).read_text() == "content"
    os.unlink(copy)
    assert file.download(str(tmp_path / "there")) == str(tmp_path / "there")
    assert file.get_local_file_name() == str(path)


def test_an_output_may_keep_the_local_file(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_text("abc")
    output = OutputFile("o", str(tmp_path / "result"), "o.txt")
    output.upload(str(local), delete_local_file=False)
    assert (output.was_uploaded, output.size, local.exists()) == (True, 3, True)
    with pytest.raises(FileNotFoundError, match=r"output 'o': there is no file .*nix"):
        output.upload(str(tmp_path / "nix"))


def test_additional_outputs_have_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_JOB_FILE", _job(tmp_path)["PAIRIO_JOB_FILE"])
    local = tmp_path / "log.txt"
    local.write_text("log")
    assert upload_additional_job_output(str(local), "a-b/log.txt") == "other/a-b/log.txt"
    assert (tmp_path / "more" / "a-b" / "log.txt").read_text() == "log"
    for name in ("", "/x", "../x", "a//b", ".hidden", "a/b/c/d/e/f/g", "é"):
        with pytest.raises(ValueError, match="is no name for an output"):
            upload_additional_job_output(str(local), name)


# -- light -----------------------------------------------------------------------------------------


def test_importing_it_is_standard_library_only_and_leaves_out_what_costs() -> None:
    code = "import sys, pairio.sdk; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(ROOT / "sdk")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) - {"__main__"} == {"pairio"}
    costly = {"shutil", "tempfile", "random", "urllib", "http", "asyncio", "subprocess", "inspect"}
    assert loaded & costly == set()


def test_importing_it_costs_little_more_than_typing_and_json() -> None:
    code = (
        "import typing, json, re, time; t = time.perf_counter(); import pairio.sdk;"
        "print(time.perf_counter() - t)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-S", "-c", code],
            env={"PYTHONPATH": str(ROOT / "sdk")},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(5)
    ]
    assert min(float(run.stdout) for run in runs) < 0.015


def _folder(path: Path) -> Path:
    (path / "sub" / "empty").mkdir(parents=True)
    (path / "sub" / "x.txt").write_text("abc")
    return path


def _below(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_a_folder_is_read_by_path_or_copy_that_may_be_changed(tmp_path: Path) -> None:
    source = _folder(tmp_path / "data")
    file = InputFile("i", str(source), "data")
    assert file.is_folder()
    copy = Path(file.download())
    assert _below(copy) == _below(source)
    (copy / "sub" / "x.txt").write_text("changed")
    there = Path(file.download(str(tmp_path / "there")))
    assert (there / "sub" / "x.txt").read_text() == "abc"
    with pytest.raises(FileExistsError, match="is not empty"):
        file.download(str(there))


def test_a_folder_may_be_an_output(tmp_path: Path) -> None:
    output = OutputFile("o", str(tmp_path / "result"), "o")
    local = _folder(tmp_path / "local")
    output.upload(str(local), delete_local_file=False)
    assert (output.was_uploaded, output.size, local.exists()) == (True, 3, True)
    assert _below(tmp_path / "result") == _below(local)
    moved = OutputFile("p", str(tmp_path / "moved"), "p")
    moved.upload(str(local))
    assert (_below(tmp_path / "moved"), local.exists()) == (_below(tmp_path / "result"), False)


def test_needs_of_a_processor_stand_in_its_spec() -> None:
    class Context(BaseModel):
        data: InputFile = Field(description="x", json_schema_extra={"stream": True})
        plain: InputFile = Field(description="x")

    class Needy(ProcessorBase):
        name = "needy"
        network = "full"
        secrets: ClassVar[list[str]] = ["TOKEN"]

        @staticmethod
        def run(context: Context) -> None:
            return None

    app = App("needy")
    app.add_processor(Needy)
    spec = app.get_spec()["processors"][0]
    assert (spec["network"], spec["secrets"]) == ("full", ["TOKEN"])
    assert [entry.get("stream") for entry in spec["inputs"]] == [True, None]
    installed = validate_app({**app.get_spec(), "bundle": BUNDLE})["processors"][0]
    assert (installed["network"], installed["secrets"]) == ("full", ["TOKEN"])


def test_a_secret_is_read_from_where_the_job_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "TOKEN").write_bytes(b"one\r\ntwo")
    monkeypatch.setenv("PAIRIO_SECRETS_DIR", str(tmp_path))
    assert get_secret("TOKEN") == "one\r\ntwo"
    with pytest.raises(LookupError, match="this job has: TOKEN"):
        get_secret("OTHER")
    monkeypatch.delenv("PAIRIO_SECRETS_DIR")
    monkeypatch.setenv("TOKEN", "from the environment")
    assert get_secret("TOKEN") == "from the environment"
    with pytest.raises(LookupError):
        get_secret("NOT_SET_HERE")
