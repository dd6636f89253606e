"""A folder in and a folder out, in the sandbox of another node; and data that is not copied."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pairio._http import Api
from pairio.errors import RequestRefused
from tests.block_files import block_data
from tests.integration.conftest import RunningNode, StartNode

pytestmark = pytest.mark.integration

APP = """
import os
from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase


class Context(BaseModel):
    data: InputFile = Field(description="A folder")
    output: OutputFile = Field(description="The same folder in capitals")


class Shout(ProcessorBase):
    name = "shout"
    executable = "main.py"

    @staticmethod
    def run(context: Context) -> None:
        print("folder" if context.data.is_folder() else "file", flush=True)
        source = context.data.get_local_file_name()
        try:
            open(os.path.join(source, "new"), "w")
        except OSError:
            print("read-only", flush=True)
        print(os.stat(os.path.join(source, "a.txt")).st_ino, flush=True)
        context.data.download("here")
        for folder, _, names in os.walk("here"):
            for name in names:
                path = os.path.join(folder, name)
                text = open(path).read().upper()
                open(path, "w").write(text)
        context.output.upload("here")


app = App("shouting")
app.add_processor(Shout)
if __name__ == "__main__":
    app.run()
"""


def with_app(node: RunningNode, path: Path) -> None:
    """Make a service `lab` with the app."""
    path.mkdir()
    (path / "main.py").write_text(APP)
    for arguments in (("service", "create", "lab"), ("app", "install", "lab", str(path))):
        made = node.cli(*arguments)
        assert made.returncode == 0, made.stderr


def two_nodes(start_node: StartNode, tmp_path: Path) -> tuple[RunningNode, RunningNode]:
    """A node that only submits, and one that computes."""
    first = start_node("a", "--no-compute")
    with_app(first, tmp_path / "app")
    second = start_node("b", "--bootstrap", first.info["addresses"][0])
    granted = first.cli("service", "grant", "lab", second.info["peerId"], "--roles", "compute")
    assert granted.returncode == 0, granted.stderr
    return first, second


def test_a_folder_in_and_a_folder_out(start_node: StartNode, tmp_path: Path) -> None:
    first, second = two_nodes(start_node, tmp_path)
    folder = tmp_path / "data"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b c.txt").write_text("two" * 700_000)
    ran = first.cli("submit", "shouting/shout", "-i", f"data={folder}", "--wait", "--json")
    assert ran.returncode == 0, ran.stderr
    job = json.loads(ran.stdout)
    assert job["computeNodeId"] == second.info["peerId"]
    assert job["jobDefinition"]["inputFiles"][0]["fileBaseName"] == "data"
    assert first.cli("job", "logs", job["jobId"]).stdout.split()[:2] == ["folder", "read-only"]
    output = first.get(f"jobs/{job['jobId']}/outputs/output?format=json")
    assert [(e["name"], e["type"]) for e in output["entries"]] == [
        ("a.txt", "file"),
        ("sub", "folder"),
    ]
    out = tmp_path / "out"
    got = first.cli("get", job["jobId"], "output", "-o", str(out))
    assert got.returncode == 0, got.stderr
    assert ((out / "a.txt").read_text(), (out / "sub" / "empty").is_dir()) == ("ONE", True)

    code = (
        "from pairio.client import *\n"
        f"job = find_job({job['jobId']!r})\n"
        "output = job.get_output('output')\n"
        "print(output.read('a.txt').decode(), len(output.read('sub/b c.txt')))\n"
        "print([e['name'] for e in output.list('sub')])\n"
        f"print(add_content({str(folder)!r}) == job.jobDefinition.inputFiles[0].url)\n"
    )
    sdk = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **first.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert sdk.stdout.splitlines() == ["ONE 2100000", "['b c.txt', 'empty']", "True"], sdk.stderr

    again = first.cli("submit", "shouting/shout", "-i", f"data={folder}", "--wait", "--json")
    assert json.loads(again.stdout)["cached"], "the same folder is the same job"
    (folder / "link").symlink_to("/etc/passwd")
    refused = first.cli("submit", "shouting/shout", "-i", f"data={folder}")
    assert (refused.returncode, "is a symbolic link" in refused.stderr) == (1, True)


def test_a_job_reads_data_by_reference_where_it_lies(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node("a")
    with_app(node, tmp_path / "app")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("one" * 1_000_000)
    (folder / "a\nb.txt").write_text("odd\n")
    submit = ("submit", "shouting/shout", "-i", f"data={folder}", "--nocopy", "--wait", "--json")
    ran = node.cli(*submit)
    assert ran.returncode == 0, ran.stderr
    job = json.loads(ran.stdout)
    console = node.cli("job", "logs", job["jobId"]).stdout.split()
    assert console == ["folder", "read-only", str((folder / "a.txt").stat().st_ino)]
    url = job["outputFileResults"][0]["url"]
    with urllib.request.urlopen(url) as page:
        text = page.read().decode()
        assert page.headers["Content-Security-Policy"].startswith("sandbox allow-downloads;")
    (link,) = re.findall(r'href="([^"]*a%0Ab[^"]*)"', text)
    asked = urllib.request.Request(url.partition("/ipfs/")[0] + link, headers={"Range": "bytes=-3"})
    with urllib.request.urlopen(asked) as part:
        assert (part.status, part.read()) == (206, b"DD\n")

    sizes = list(map(len, block_data(node.home)))
    assert (max(sizes), sum(sizes) < 4_000_000) == (2**20, True), "the output alone, no input"

    copied = node.cli(*(a for a in submit if a != "--nocopy"))
    assert json.loads(copied.stdout)["cached"], "the same content is the same job"
    refs = json.loads(node.cli("content", "refs", "--json").stdout)
    assert [(r["path"], r["type"], r["state"], r["dependents"]) for r in refs] == [
        (str(folder), "folder", "good", [job["jobId"]])
    ]
    (folder / "a.txt").write_text("two" * 1_000_000)
    assert "changed" in node.cli("content", "refs").stdout
    again = node.cli(*submit)
    assert "has changed since it was added last" in again.stderr
    assert "known here as an input of 1 job" in again.stderr
    assert not json.loads(again.stdout)["cached"]
    token = node.cli("token", "create", "reader", "--read-only").stdout.strip()
    url = json.loads((node.home / "api.json").read_text())["url"]
    api = Api(url, token)
    with pytest.raises(RequestRefused, match="only reads"):
        api.call("POST", "/api/v1/content/references", {"path": str(folder)})
    api.close()


def test_a_job_goes_to_the_node_that_holds_its_200_mb(
    start_node: StartNode, tmp_path: Path
) -> None:
    first = start_node("a", "--no-compute")
    others = [start_node(name, "--bootstrap", first.info["addresses"][0]) for name in ("b", "c")]
    for arguments in (
        ("service", "create", "lab"),
        ("app", "install", "lab", "hello_world"),
        *(
            ("service", "grant", "lab", node.info["peerId"], "--roles", "compute")
            for node in others
        ),
    ):
        done = first.cli(*arguments)
        assert done.returncode == 0, done.stderr
    ends = time.monotonic() + 60
    while not all(node.get("services")["services"] for node in others):
        assert time.monotonic() < ends, "the others are told"
        time.sleep(0.05)  # house: waiting for another process
    for holder in others:
        file = tmp_path / f"{holder.home.name}.txt"
        with file.open("wb") as opened:
            for number in range(200):
                opened.write(f"{holder.home.name}{number:7}".encode() * (2**20 // 8))
        added = holder.cli("content", "add", str(file), "--nocopy", "--service", "lab")
        assert added.returncode == 0, added.stderr
        cid = added.stdout.strip()
        submit = ("submit", "hello_world/count_characters", "-i", f"input={cid}")
        ran = first.cli(*submit, "--memory-gb", "2", "--wait", "--json")
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["computeNodeId"] == holder.info["peerId"]
    for node in (first, *others):
        assert node.get("status")["blocks"]["usedBytes"] < 2_000_000, "no copy anywhere"
