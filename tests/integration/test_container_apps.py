"""Apps with an image on real nodes: installed here, run there, never without the image."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.engines import RunningEngine, engine
from tests.integration.test_containers import busybox_archive
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
LONG_S = 90.0
_PROCESSOR = {
    "name": "tell",
    "executable": "/app/main.sh",
    "inputs": [],
    "outputs": [{"name": "output"}],
    "parameters": [{"name": "wait", "type": "bool", "defaultValue": False}],
}
_SCRIPT = """#!/bin/sh
echo started
if grep -q '"value": true' "$PAIRIO_JOB_FILE"; then while [ ! -e ../go ]; do sleep 0.1; done; fi
cat /etc/made-of >../out/0
"""
StartWith = Callable[..., RunningNode]


@pytest.fixture(scope="module")
def podman() -> Iterator[RunningEngine]:
    with engine("podman") as found:
        yield found


@pytest.fixture
def start(start_node: StartNode, tmp_path: Path) -> StartWith:
    """Start a node, with an engine or without any."""

    def begin(name: str, found: RunningEngine | None, *arguments: str) -> RunningNode:
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        setting = "enabled = false" if found is None else f"socket = {json.dumps(found.socket)}"
        (tmp_path / name / "node.toml").write_text(f"[container]\n{setting}\n")
        return start_node(name, *arguments)

    return begin


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    spec = {"name": "teller", "description": "", "processors": [_PROCESSOR]}
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "main.sh").write_text(_SCRIPT)
    (folder / "main.sh").chmod(0o755)
    return folder


def _with_service(node: RunningNode) -> RunningNode:
    assert node.cli("service", "create", "lab").returncode == 0
    return node


def _install(node: RunningNode, app: Path, image: str) -> dict[str, Any]:
    done = node.cli("app", "install", "lab", str(app), "--image", image, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _join(first: RunningNode, second: RunningNode) -> None:
    peers = (second.info["peerId"], "--roles", "submit,compute")
    assert first.cli("service", "grant", "lab", *peers).returncode == 0
    until("it takes part", lambda: second.get("services")["services"], LONG_S)


def _submit(node: RunningNode, *arguments: str) -> str:
    done = node.cli("submit", "teller/tell", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["requestId"])


def _completed(node: RunningNode, request: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job = dict(node.get(f"jobs/{request}"))
        assert job["status"] != "failed", job
        return job if job["status"] == "completed" else None

    job = until("the job has completed", ended, LONG_S)
    assert job is not None
    return job


def test_an_app_runs_in_its_image_on_the_node_that_has_an_engine(
    start: StartWith, podman: RunningEngine, app: Path, tmp_path: Path
) -> None:
    first = _with_service(start("a", None))  # it computes, and has no engine
    image_id = busybox_archive(tmp_path / "image.tar")
    made = _install(first, app, str(tmp_path / "image.tar"))
    (processor,) = made["appSpecification"]["processors"]
    assert processor["container"]["id"] == image_id
    request = _submit(first)

    def rule() -> dict[str, Any] | None:
        nodes = first.get(f"jobs/{request}/why")["nodes"]
        return next((n for n in nodes if n["rule"] == "executor"), None)

    why = until("it is said why nobody runs it", rule, LONG_S)
    assert why is not None
    assert why["need"] == "container"
    assert "container" not in why["have"]
    assert first.get(f"jobs/{request}")["status"] == "pending"

    second = start("b", podman, "--bootstrap", first.info["addresses"][0])
    status = second.get("status")
    assert "container" in status["runners"]
    assert status["containers"]["engine"].startswith("Podman ")
    assert status["containers"]["memoryLimit"] == "cgroup"
    assert first.get("status")["containers"] is None
    assert "switched off" in first.get("status")["runnersMissing"]["container"]["why"]
    _join(first, second)
    job = _completed(first, request)
    assert job["isolation"] == "container"
    (output,) = job["outputFileResults"]
    with urllib.request.urlopen(output["url"]) as page:
        assert page.read() == b"an image\n"


def test_code_is_there_when_whoever_installed_it_is_gone(
    start: StartWith, podman: RunningEngine, app: Path, tmp_path: Path
) -> None:
    first = _with_service(start("a", None, "--no-compute"))
    busybox_archive(tmp_path / "image.tar", author="another")
    made = _install(first, app, str(tmp_path / "image.tar"))
    cid = made["appSpecification"]["processors"][0]["container"]["archive"]
    second = start("b", podman, "--bootstrap", first.info["addresses"][0])
    _join(first, second)
    until("bundle and image are here", lambda: second.get("status")["codeMissing"] == [], LONG_S)
    assert first.stop() == 0
    _completed(second, _submit(second))
    shown = second.get("services/lab/apps")["apps"][0]["appSpecification"]["processors"][0]
    assert shown["container"]["archive"] == cid


def test_a_container_outlives_its_node_and_is_taken_up(
    start: StartWith, podman: RunningEngine, app: Path, tmp_path: Path
) -> None:
    node = _with_service(start("a", podman))
    busybox_archive(tmp_path / "image.tar")
    _install(node, app, str(tmp_path / "image.tar"))
    request = _submit(node, "-p", "wait=true")
    jobs = node.home / "jobs"

    def folder() -> Path | None:
        found = (path for path in jobs.glob("*/console") if b"started" in path.read_bytes())
        return next((path.parent for path in found), None)

    work = until("the job has started", folder, LONG_S)
    assert work is not None
    node.process.kill()
    node.process.wait()
    node.process.stdout.close()  # type: ignore[union-attr]
    node = start("a", podman)
    time.sleep(0.5)  # house: a node that would remove it has the time to
    assert len(podman.containers()) == 1
    (work / "tmp" / "go").touch()
    job = _completed(node, request)
    assert [attempt["ended"] for attempt in job["attempts"]] == ["completed"]
    until("nothing is left", lambda: podman.containers() == [], LONG_S)


def test_an_image_may_be_named_as_the_engine_here_names_it(
    start: StartWith, podman: RunningEngine, app: Path, tmp_path: Path
) -> None:
    image_id = busybox_archive(tmp_path / "image.tar", author="named")
    data = (tmp_path / "image.tar").read_bytes()
    podman.api.send("POST", "/images/load", {}, "application/x-tar", len(data), [data])
    podman.api.ask("POST", f"/images/{image_id}/tag", {"repo": "localhost/me/app", "tag": "1"})
    node = _with_service(start("a", podman))
    by_name = _install(node, app, "localhost/me/app:1")["appSpecification"]["processors"][0]
    assert by_name["container"]["id"] == image_id
    assert by_name["image"] == "localhost/me/app:1"
    by_file = _install(node, app, str(tmp_path / "image.tar"))["appSpecification"]["processors"][0]
    assert by_file["container"] == by_name["container"]
    _completed(node, _submit(node))
    assert podman.api.ask("GET", f"/images/{image_id}/json")  # the owner's own: it stays


def test_what_is_no_image_is_said(start: StartWith, app: Path, tmp_path: Path) -> None:
    node = _with_service(start("a", None))
    (tmp_path / "bad.tar").write_bytes(b"no tar file" * 1000)
    for image, words in (
        (tmp_path / "bad.tar", "no tar file"),
        (tmp_path / "x.tar", "No such file"),
    ):
        done = node.cli("app", "install", "lab", str(app), "--image", str(image))
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert "hint: make it with `docker save" in done.stderr
    done = node.cli("app", "install", "lab", str(app), "--image", "me/app:1")
    assert done.returncode == 0
    assert "recorded and not used" in done.stderr


_NEEDY = """#!/bin/sh
url=$(/bin/busybox sed -n 's/.*"url": "\\([^"]*\\)".*/\\1/p' $PAIRIO_JOB_FILE)
echo the token is $(cat $PAIRIO_SECRETS_DIR/TOKEN)
/bin/busybox wget -q -O ../out/0 $url
"""


def test_an_app_in_an_image_gets_secrets_and_streams(
    start: StartWith, podman: RunningEngine, app: Path, tmp_path: Path
) -> None:
    needy = {**_PROCESSOR, "inputs": [{"name": "data", "stream": True}], "secrets": ["TOKEN"]}
    spec = {"name": "teller", "description": "", "processors": [needy]}
    (app / "spec.json").write_text(json.dumps(spec))
    (app / "main.sh").write_text(_NEEDY)
    node = _with_service(start("a", podman))
    busybox_archive(tmp_path / "image.tar")
    _install(node, app, str(tmp_path / "image.tar"))
    (tmp_path / "data").write_text("what is streamed\n")
    (tmp_path / "token").write_text("correct horse battery\n")
    given = ("-i", f"data={tmp_path}/data", "--secret", f"TOKEN=@{tmp_path}/token")
    job = _completed(node, _submit(node, *given))
    assert node.cli("get", job["jobId"], "output").stdout == "what is streamed\n"
    assert node.cli("job", "logs", job["jobId"]).stdout == "the token is [secret TOKEN]\n"
    until("nothing is left", lambda: podman.containers() == [], LONG_S)
