"""A user's program is checked by mypy, strictly: the SDK says what its calls take and give."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import assert_type

from pairio.client import (
    AsyncClient,
    AsyncPairioJob,
    Batch,
    BatchProgress,
    Client,
    PairioJob,
    PairioJobDefinition,
    PairioJobParameter,
    SpecialJobOutput,
    submit_job,
)
from pairio.errors import JobFailed, PairioError
from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase, report_progress


def blocking(names: list[str]) -> int:
    with Client(service_name="lab") as client:
        job = client.submit("a/p", parameters={"x": 0.5, "none": None}, inputs={"i": Path("f")})
        assert_type(job, PairioJob)
        assert_type(job.status, str)
        assert_type(job.error, str | None)
        assert_type(job.progress, float | None)
        assert_type(job.result(60), dict[str, SpecialJobOutput])
        assert_type(job.outputs["o"].read_text(), str)
        assert_type(job.wait(1, raise_on_failure=True), PairioJob)
        batch = client.map("a/p", ({"name": name} for name in names), tags=["t"])
        assert_type(batch, Batch)
        assert_type(batch.progress(), BatchProgress)
        for done in batch.as_completed(timeout=3):
            assert_type(done, PairioJob)
        for text in job.follow():
            assert_type(text, str)
        definition = PairioJobDefinition(
            appName="a", processorName="p", parameters=[PairioJobParameter(name="x", value=0.5)]
        )
        assert_type(client.find_job_by_definition(definition), PairioJob | None)
        assert_type(submit_job(job_definition=definition), PairioJob)
        return len(batch)


async def waiting(client: AsyncClient) -> list[AsyncPairioJob]:
    batch = await client.sweep("a/p", {"x": range(3)}, pin_inputs=True)
    stream = batch.as_completed()
    assert_type(stream, AsyncGenerator[AsyncPairioJob, None])
    try:
        return [job async for job in stream]
    except JobFailed as error:
        raise PairioError(str(error.hint)) from error


class Context(BaseModel):
    data: InputFile = Field(description="d")
    result: OutputFile = Field(description="r")


class Processor(ProcessorBase):
    name = "p"

    @staticmethod
    def run(context: Context) -> None:
        report_progress(0.5, "half")
        context.result.upload(context.data.download())


App("a").add_processor(Processor)
"""
WRONG = {
    "client.submit(3)": "arg-type",
    'client.submit("a/p", tag=["t"])': "call-arg",
    'client.map("a/p")': "call-arg",
    'client.submit("a/p").outputs["o"].no_such()': "attr-defined",
}


def _checked(folder: Path, text: str) -> str:
    (folder / "program.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ran.stdout + ran.stderr


@pytest.mark.timeout(600)
def test_a_program_that_is_right_is_found_right_and_mistakes_are_named(tmp_path: Path) -> None:
    said = _checked(tmp_path, PROGRAM)
    assert "Success: no issues found" in said, said
    lines = [f"    {line}" for line in WRONG]
    head = "from pairio.client import Client\n\n\ndef wrong(client: Client) -> None:\n"
    said = _checked(tmp_path, head + "\n".join(lines) + "\n")
    for number, (line, code) in enumerate(WRONG.items(), 5):
        found = [row for row in said.splitlines() if row.startswith(f"program.py:{number}:")]
        assert any(f"[{code}]" in row for row in found), (line, said)
