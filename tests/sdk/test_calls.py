"""A call while the node is away or restarts; nothing is submitted twice."""

import inspect
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import pairio
from pairio import _patient, _patient_async, errors
from pairio import client as client_module
from pairio.client import (
    AsyncClient,
    AsyncPairioJob,
    Client,
    PairioJob,
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobParameter,
)
from pairio.errors import (
    Conflict,
    InvalidRequest,
    JobBlocked,
    JobCanceled,
    JobFailed,
    NodeNotRunning,
    NotAllowed,
    NotFound,
    PairioError,
    StorageFull,
    WaitTimeout,
    refusal_of,
)
from tests.sdk.fake_node import REQUEST_ID, Asked, FakeNode, Raw, job

ROOT = Path(__file__).parents[2]
_DICT_A: dict[str, Any] = {"appName": "a"}
_DICT_N: dict[str, Any] = {"name": "n"}
DEFINITION = PairioJobDefinition(appName="hello", processorName="greet")


@pytest.fixture
def client(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the fake node that finds it by its home, as a restarted node is found."""
    monkeypatch.setattr(_patient, "PAUSE_S", 0.01)
    monkeypatch.delenv("PAIRIO_API_URL")
    _point_home_at(node)
    with Client(reconnect_s=5) as made:
        yield made


def _point_home_at(node: FakeNode) -> None:
    home = Path(os.environ["PAIRIO_HOME"])
    home.mkdir(exist_ok=True)
    (home / "api.json").write_text(json.dumps({"url": node.url, "token": node.token}))


# -- away and back ---------------------------------------------------------------------------


def test_an_answer_that_is_cut_off_is_asked_for_again_with_the_same_key(
    client: Client, node: FakeNode
) -> None:
    node.on("GET", "/status", {"peerId": "x"})
    client.status()
    cut = Raw(json.dumps(job()).encode(), cut=20)
    node.on("POST", "/jobs", [cut, cut, job()])
    assert client.submit_job(job_definition=DEFINITION).status == "completed"
    keys = [asked.key for asked in node.calls("POST", "/jobs")]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(keys[0]) > 15
    client.submit_job(job_definition=DEFINITION)
    assert node.calls("POST", "/jobs")[-1].key != keys[0]


def test_a_node_that_comes_back_elsewhere_is_found(client: Client, node: FakeNode) -> None:
    found = PairioJob(client, job(status="running", isSettled=False))
    node.on("GET", f"/jobs/{REQUEST_ID}/wait", job(status="running", isSettled=False))
    found.wait_until_done(wait_sec=0.01)
    with FakeNode(token="another") as again:
        again.on("GET", f"/jobs/{REQUEST_ID}/wait", job())

        def gone(asked: Asked) -> Any:
            _point_home_at(again)
            return Raw(b"{}" * 10, cut=1)

        node.on("GET", f"/jobs/{REQUEST_ID}/wait", gone)
        found.wait_until_done()
        assert found.status == "completed"
        client.close()


def test_a_node_that_stays_away_is_said_after_the_time_given(
    client: Client, node: FakeNode
) -> None:
    node.on("GET", "/status", {"peerId": "x"})
    client.status()
    (Path(os.environ["PAIRIO_HOME"]) / "api.json").unlink()
    node.token = "gone"
    client.reconnect_s = 0.05
    with pytest.raises(NodeNotRunning, match="no node runs"):
        client.status()


def test_one_that_refused_was_there(
    client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        client.status()  # nothing that this one knows
    (Path(os.environ["PAIRIO_HOME"]) / "api.json").unlink()
    node.token = "gone"
    with FakeNode(token="another") as again:
        again.on("GET", "/status", {"peerId": "x"})
        monkeypatch.setattr(_patient, "sleep", lambda _: _point_home_at(again))
        assert client.status()["peerId"] == "x"
        client.close()


def test_a_node_that_never_was_there_is_not_waited_for(node: FakeNode) -> None:
    away = Client("http://127.0.0.1:9", "x", reconnect_s=1e9)
    with pytest.raises(NodeNotRunning, match="no node answers"):
        away.status()


def _gone_without_a_word(node: FakeNode, again: FakeNode, patch: pytest.MonkeyPatch) -> None:
    """Let the node go when it is asked for a job, and be back while the client pauses."""
    home = Path(os.environ["PAIRIO_HOME"]) / "api.json"

    def gone(asked: Asked) -> Any:
        home.unlink()
        raise ConnectionResetError

    node.on("POST", "/jobs", gone)
    again.on("POST", "/jobs", job())
    sleep = anyio.sleep

    async def back(_: float) -> None:
        _point_home_at(again)
        await sleep(0)

    patch.setattr(_patient_async, "sleep", back)
    patch.setattr(_patient, "sleep", lambda _: _point_home_at(again))


def test_a_first_call_goes_on_when_the_node_was_there_for_it(
    client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeNode(token="another") as again:
        _gone_without_a_word(node, again, monkeypatch)
        assert client.submit_job(job_definition=DEFINITION, wait_sec=60).status == "completed"
        [first], [second] = node.calls("POST", "/jobs"), again.calls("POST", "/jobs")
        assert (first.key, first.query) == (second.key, second.query)
        client.close()


def test_a_node_that_goes_after_it_took_a_file_was_there(
    client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is kept, so the job is sent twice: the node took the first, nobody the
    second."""
    entry = PairioJobInputFile(name="a", url=b"bytes")
    definition = PairioJobDefinition(appName="a", processorName="p", inputFiles=[entry])
    node.on("POST", "/content", {"cid": "bafkx", "size": 1})

    def gone(asked: Asked) -> Any:
        node.leave()
        raise ConnectionResetError

    node.on("POST", "/jobs", gone)
    with FakeNode(token="another") as again:
        again.on("POST", "/jobs", job())
        monkeypatch.setattr(_patient, "sleep", lambda _: _point_home_at(again))
        assert client.submit_job(job_definition=definition).status == "completed"
        [first], [second] = node.calls("POST", "/jobs"), again.calls("POST", "/jobs")
        assert first.key == second.key
        client.close()


@pytest.mark.parametrize("backend", ["blocking", "asyncio", "trio"])
def test_one_that_went_was_there_also_when_where_it_shall_be_nobody_is(
    backend: str, client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> str:
        async with AsyncClient(reconnect_s=5) as made:
            return (await made.submit_job(job_definition=DEFINITION)).status

    with FakeNode(token="another") as again, FakeNode(token="nobody") as nobody:
        _gone_without_a_word(node, again, monkeypatch)
        nobody.leave()

        def gone(asked: Asked) -> Any:
            _point_home_at(nobody)
            raise ConnectionResetError

        node.on("POST", "/jobs", gone)
        if backend == "blocking":
            assert client.submit_job(job_definition=DEFINITION).status == "completed"
        else:
            assert anyio.run(run, backend=backend) == "completed"
        assert len(again.calls("POST", "/jobs")) == 1
        client.close()


def test_a_first_answer_that_is_cut_off_is_asked_for_again(client: Client, node: FakeNode) -> None:
    node.on("POST", "/jobs", [Raw(json.dumps(job()).encode(), cut=20), job()])
    assert client.submit_job(job_definition=DEFINITION).status == "completed"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_so_does_one_of_an_async_client(
    backend: str, client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> str:
        async with AsyncClient(reconnect_s=5) as made:
            return (await made.submit_job(job_definition=DEFINITION, wait_sec=60)).status

    with FakeNode(token="another") as again:
        _gone_without_a_word(node, again, monkeypatch)
        assert anyio.run(run, backend=backend) == "completed"
        assert len(again.calls("POST", "/jobs")) == 1


def test_what_only_breaks_off_is_given_up_in_time_and_what_says_other_things_at_once(
    client: Client, node: FakeNode
) -> None:
    def gone(asked: Asked) -> Any:
        raise ConnectionResetError

    node.on("GET", "/status", gone)
    client.reconnect_s = 0.05
    with pytest.raises(NodeNotRunning, match="no node answers"):
        client.status()
    assert len(node.calls("GET", "/status")) > 1
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with (
            Client(url, "x", reconnect_s=1e9) as made,
            pytest.raises(NodeNotRunning, match="no node answers"),
        ):
            made.status()
        thread.join()


def test_a_download_goes_on_where_it_was_cut(client: Client, node: FakeNode) -> None:
    content = bytes(range(256)) * 2000
    node.on("GET", "/status", {"peerId": "x"})
    client.status()

    def part(asked: Asked) -> Raw:
        start = int(asked.range.removeprefix("bytes=").rstrip("-") or 0)
        rest = content[start:]
        return Raw(rest, status=206 if start else 200, cut=200_000 if len(rest) > 200_000 else None)

    node.on("GET", f"/jobs/{REQUEST_ID}/outputs/output", part)
    assert PairioJob(client, job()).outputs["output"].read() == content
    assert len(node.calls("GET", f"/jobs/{REQUEST_ID}/outputs/output")) == 3


def test_an_answer_from_the_cache_is_found_again_after_a_restart(
    client: Client, node: FakeNode
) -> None:
    node.on("GET", f"/jobs/{job()['jobId']}", job(safe=True))
    cached = PairioJob(client, job(cached=True))
    assert cached.refresh().status == "completed"  # the node has forgotten the request


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest), (422, InvalidRequest), (413, InvalidRequest), (401, NotAllowed),
        (403, NotAllowed), (404, NotFound), (409, Conflict), (507, StorageFull),
        (418, errors.RequestRefused), (500, errors.NodeFailed), (503, errors.NodeUnavailable),
    ],
)  # fmt: skip
def test_what_the_node_answers_has_a_class_of_its_own(
    status: int, kind: type[errors.RequestRefused], client: Client, node: FakeNode
) -> None:
    node.refuse("GET", "/status", status, "no", "do this")
    with pytest.raises(kind) as caught:
        client.status()
    assert (caught.value.status, caught.value.hint, str(caught.value)) == (status, "do this", "no")
    assert isinstance(caught.value, PairioError)
    assert type(refusal_of("no", None, "x", status)) is kind


def test_the_page_of_the_errors_names_all_of_them() -> None:
    for name in set(errors.__all__) - {"refusal_of"}:
        assert name in str(errors.__doc__), name
        assert issubclass(getattr(errors, name), PairioError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed", JobFailed), ("canceled", JobCanceled), ("blocked", JobBlocked)],
)
def test_a_job_that_did_not_complete_raises_when_asked_to(
    status: str, kind: type[JobFailed], client: Client
) -> None:
    over = PairioJob(client, job(status=status, error="it broke"))
    assert over.wait().status == status
    over.wait_until_done()
    for wait in (
        over.result,
        over.raise_on_failure,
        lambda: over.wait(raise_on_failure=True),
        lambda: over.wait_until_done(raise_on_failure=True),
    ):
        with pytest.raises(kind) as caught:
            wait()
        assert caught.value.job is over
        assert caught.value.hint
    PairioJob(client, job()).raise_on_failure()
    evil = PairioJob(client, job(status="failed", error="\x1b]0;title\x07 it\nbroke"))
    with pytest.raises(JobFailed, match=r"\?]0;title\? it\nbroke"):
        evil.raise_on_failure()


def test_waiting_ends_with_its_time(client: Client, node: FakeNode) -> None:
    running = job(status="running", isSettled=False)
    node.on("GET", f"/jobs/{REQUEST_ID}/wait", running)
    with pytest.raises(WaitTimeout, match=r"is running after 0\.01 s"):
        PairioJob(client, running).wait(0.01)
    assert issubclass(WaitTimeout, TimeoutError)


def test_waiting_ends_with_its_time_also_while_the_node_is_away(
    client: Client, node: FakeNode
) -> None:
    running = job(status="running", isSettled=False)

    def gone(asked: Asked) -> Any:
        node.leave()
        raise ConnectionResetError

    node.on("GET", f"/jobs/{REQUEST_ID}/wait", gone)
    client.reconnect_s = 1e9
    with pytest.raises(WaitTimeout, match=r"is running after 0\.1 s"):
        PairioJob(client, running).wait(0.1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PairioJobDefinition(**_DICT_A), "processorName: Field required"),
        (lambda: PairioJobDefinition(appName=7, processorName="p"), "appName"),
        (lambda: PairioJobParameter(name="n", value=object()), "value"),
        (lambda: PairioJobInputFile(**_DICT_N), "url: Field required"),
    ],
)
def test_a_mistake_in_a_definition_is_said_in_our_words(make: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        make()
    assert "pydantic" not in str(caught.value)
    assert str(caught.value.hint).startswith("fields: ")


# -- what is given as an input ------------------------------------------------------------------


def test_files_and_bytes_are_added_once_and_named_by_content(
    client: Client, node: FakeNode, tmp_path: Path
) -> None:
    path = tmp_path / "data.txt"
    path.write_text("data")
    node.on("POST", "/content", lambda asked: {"cid": f"bafk{len(asked.body)}", "size": 1})
    node.on("POST", "/jobs", job())
    inputs = [
        PairioJobInputFile(name="a", url=path),
        PairioJobInputFile(name="b", url=str(path)),
        PairioJobInputFile(name="c", url=b"bytes", fileBaseName="c.bin"),
        PairioJobInputFile(name="d", url="bafkreigiven"),
    ]
    definition = PairioJobDefinition(appName="a", processorName="p", inputFiles=inputs)
    client.submit_job(job_definition=definition)
    [asked] = node.calls("POST", "/jobs")
    assert asked.body["jobDefinition"]["inputFiles"] == [
        {"name": "a", "fileBaseName": "data.txt", "url": "ipfs://bafk4"},
        {"name": "b", "fileBaseName": "data.txt", "url": "ipfs://bafk4"},
        {"name": "c", "fileBaseName": "c.bin", "url": "ipfs://bafk5"},
        {"name": "d", "fileBaseName": None, "url": "bafkreigiven"},
    ]
    assert len(node.calls("POST", "/content")) == 2
    assert definition.inputFiles[0].url == path, "the caller's is left alone"


@pytest.mark.parametrize(
    ("url", "says"), [("./nowhere.txt", "cannot read nowhere.txt"), (7, "int is no source")]
)
def test_what_is_no_input_is_said(url: Any, says: str, client: Client) -> None:
    entry = PairioJobInputFile(name="a", url=url)
    wrong = PairioJobDefinition(appName="a", processorName="p", inputFiles=[entry])
    with pytest.raises(PairioError, match=says):
        client.submit_job(job_definition=wrong)


def test_pinned_inputs_are_content_before_the_job_is_submitted(
    client: Client, node: FakeNode
) -> None:
    node.on("POST", "/content/urls", {"cid": "bafkpinned", "size": 1})
    node.on("POST", "/jobs", job())
    urls = ("https://example.org/x", "https://ipfs.io/ipfs/bafkgiven", "job:bafyx/o")
    inputs = [PairioJobInputFile(name=f"i{n}", url=url) for n, url in enumerate(urls)]
    definition = PairioJobDefinition(appName="a", processorName="p", inputFiles=inputs)
    for pin, sent in ((True, "ipfs://bafkpinned"), (False, urls[0])):
        client.submit_job(job_definition=definition, pin_inputs=pin)
        given = node.calls("POST", "/jobs")[-1].body["jobDefinition"]["inputFiles"]
        assert [entry["url"] for entry in given] == [sent, *urls[1:]]


def test_secrets_and_targets_are_sent_as_they_are_meant(client: Client, node: FakeNode) -> None:
    node.on("POST", "/jobs", job())
    client.submit_job(job_definition=DEFINITION, secrets={"KEY": "v"})
    client.submit_job(job_definition=DEFINITION, target_compute_client_ids=["*"])
    first, second = (asked.body for asked in node.calls("POST", "/jobs"))
    assert first["secrets"] == {"KEY": "v"}
    assert "secrets" not in second
    assert second["targetComputeClientIds"] is None


class _Numpy:
    """Has what numbers and arrays of NumPy have."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def tolist(self) -> Any:
        return self._value


@pytest.mark.parametrize("value", [3, 0.5, [1.5, 2.5]])
def test_numbers_of_numpy_are_taken_as_pythons(value: Any) -> None:
    assert PairioJobParameter(name="n", value=_Numpy(value)).value == value


# -- two clients, one definition ------------------------------------------------------------------


def test_the_blocking_client_is_made_of_the_async_one() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gen_sync_client"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_a_stale_blocking_client_would_be_noticed(tmp_path: Path) -> None:
    for folder in ("scripts", "sdk/pairio/client"):
        (tmp_path / folder).mkdir(parents=True)
    script = tmp_path / "scripts" / "gen_sync_client"
    script.write_bytes((ROOT / "scripts" / "gen_sync_client").read_bytes())
    for name in ("_patient.py", "_patient_async.py"):
        (tmp_path / "sdk/pairio" / name).write_bytes((ROOT / "sdk" / "pairio" / name).read_bytes())
    for path in (ROOT / "sdk" / "pairio" / "client").glob("_*sync_*.py"):
        text = path.read_text().replace("Return the state of the node", "Tell the state")
        name = path.name
        (tmp_path / "sdk/pairio/client" / name).write_text(
            text if name.startswith("_async") else path.read_text()
        )
    command = [sys.executable, str(script), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert (checked.returncode, "_sync_calls.py" in checked.stderr) == (1, True)


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (PairioJob, AsyncPairioJob)])
def test_both_have_the_same_names_and_arguments(one: type, other: type) -> None:
    names = {name for name in dir(one) if not name.startswith("_")}
    assert names == {name for name in dir(other) if not name.startswith("_")}
    for name in names:
        ours, theirs = getattr(one, name), getattr(other, name)
        if inspect.isfunction(ours):
            kept = [list(inspect.signature(f).parameters) for f in (ours, theirs)]
            assert kept[0] == kept[1], name


def test_everything_public_is_described() -> None:
    for thing in (Client, PairioJob, client_module.Batch, client_module.SpecialJobOutput):
        for name, member in inspect.getmembers(thing):
            if not name.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{thing.__name__}.{name}"


def test_the_package_has_the_clients_names_and_loads_them_when_asked_for() -> None:
    assert frozenset(client_module.__all__) == pairio._OF_CLIENT
    assert pairio.Client is Client
    with pytest.raises(AttributeError, match="nix"):
        _ = pairio.nix
    code = "import sys, pairio, pairio.sdk; print('pydantic' in sys.modules)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    code = "import sys, pairio.client; print('anyio' in sys.modules, 'libp2p' in sys.modules)"
    blocking = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (plain.stdout.strip(), blocking.stdout.strip()) == ("False", "False False")
