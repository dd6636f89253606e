"""Every command: data on stdout, the rest on stderr, exit codes, one JSON document with --json."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pairio_protocol.cid import RAW, cid_of
from tests.cli.conftest import Run
from tests.sdk.fake_node import JOB_ID, FakeNode, Raw, job

SERVICE = {
    "serviceName": "lab",
    "serviceId": "bafyservice",
    "roles": ["admin", "submit"],
    "members": [
        {"name": "Ada", "roles": ["submit"], "peers": ["12D3KooWada"], "alive": True},
        {"name": "Bob", "roles": ["compute"], "peers": ["12D3KooWbob"], "alive": False},
    ],
    "apps": ["hello"],
    "admins": ["12D3KooWada"],
    "threshold": 1,
    "ended": False,
    "proposals": 0,
    "losingBranches": 0,
    "public": None,
}
APP = {
    "appName": "hello",
    "appSpecification": {
        "processors": [
            {
                "name": "greet",
                "inputs": [{"name": "input"}],
                "outputs": [{"name": "output"}],
                "parameters": [
                    {"name": "name", "type": "str"},
                    {"name": "count", "type": "int"},
                    {"name": "ratio", "type": "Optional[float]"},
                    {"name": "flag", "type": "bool"},
                    {"name": "names", "type": "List[str]"},
                ],
            }
        ]
    },
}
OFFER = {"serviceName": "lab", "serviceId": "bafyservice", "admins": ["12D3KooWadmin"]}
WHY = {
    "status": "pending",
    "error": None,
    "waitsFor": ["bafyupstream"],
    "attempt": {"state": "awarded", "node": "12D3KooWbob"},
    "nodes": [
        {"name": "Ada", "fits": True, "rule": "", "need": "", "have": ""},
        {"name": "Bob", "fits": False, "rule": "CPUs", "need": "8", "have": "4"},
    ],
}
STATUS = {
    "peerId": "12D3KooWme",
    "version": "1.0.0",
    "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooWme"],
    "apiUrl": "http://127.0.0.1:1",
    "services": ["lab"],
    "peers": ["12D3KooWbob"],
    "capacity": {"numCpus": 2.0, "memoryGb": 4.0, "numGpus": 0},
    "isolation": "medium",
    "running": 1,
    "counters": {"gossip_received": 7},
    "restarts": 0,
    "lastCrash": None,
}


@pytest.fixture
def lab(node: FakeNode) -> FakeNode:
    """A node with a service, an app and a job."""
    node.on("GET", "/services", {"services": [SERVICE]})
    node.on("POST", "/services", SERVICE)
    node.on("GET", "/services/lab", SERVICE)
    node.on("POST", "/services/lab/accept", SERVICE)
    node.on("GET", "/offers", {"offers": [OFFER]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})
    done = {"serviceName": "lab", "updated": False, "changed": True, "proposal": None}
    node.on("POST", "/services/lab/apps", {**APP, **done})
    node.on("POST", "/jobs", job())
    node.on("GET", "/jobs", {"jobs": [job()]})
    node.on("GET", f"/jobs/{JOB_ID}", job())
    node.on("GET", f"/jobs/{JOB_ID}/why", WHY)
    node.on("POST", f"/jobs/{JOB_ID}/cancel", job(status="canceled"))
    node.on("GET", f"/jobs/{JOB_ID}/console", Raw(b"line \xff\n"))
    greeting = cid_of(RAW, b"hello")
    made = {"name": "output", "cid": greeting, "size": 5, "fileBaseName": "greeting.txt"}
    result = {"jobId": JOB_ID, "status": "completed", "error": None, "outputs": [made]}
    node.on("GET", f"/results/{JOB_ID}", result)
    node.on("GET", f"/content/{greeting}", Raw(b"hello"))
    node.on("POST", "/content", {"cid": "bafkadded", "size": 3})
    node.on("POST", "/tokens", {"name": "notebook", "token": "token-once"})
    node.on("POST", "/links", {"url": "http://127.0.0.1:1/open/code"})
    node.on("GET", "/status", STATUS)
    return node


# -- reading commands: a table or words without --json, the node's document with it ----------

READING: list[tuple[list[str], str, Any]] = [
    (["service", "ls"], "lab", [SERVICE]),
    (["service", "show", "lab"], "Bob", SERVICE),
    (["service", "offers"], "bafyservice", [OFFER]),
    (["app", "ls", "lab"], "greet", [APP]),
    (["job", "ls"], "hello/greet", [job()]),
    (["job", "show", JOB_ID], "output.txt", job()),
    (["job", "why", JOB_ID], "CPUs: needs 8, has 4", WHY),
]


@pytest.mark.parametrize(("command", "says", "document"), READING, ids=lambda v: str(v)[:30])
def test_a_reading_command_prints_words_or_one_document(
    command: list[str], says: str, document: Any, lab: FakeNode, run: Run
) -> None:
    words = run(*command)
    assert (words.code, words.err) == (0, "")
    assert says in words.out
    with_json = run(*command, "--json")
    assert (with_json.code, with_json.err) == (0, "")
    assert json.loads(with_json.out) == document


def test_status_prints_words_or_one_document(lab: FakeNode, run: Run) -> None:
    words = run("status", program="pairio-node")
    assert words.code == 0
    assert "gossip_received: 7" in words.out
    with_json = run("status", "--json", program="pairio-node")
    assert json.loads(with_json.out) == STATUS


# -- commands that do something: the name of what was made on stdout, a sentence on stderr -----

DOING: list[tuple[list[str], str, str]] = [
    (["service", "create", "lab"], "bafyservice\n", "Created service 'lab'"),
    (["service", "accept", "lab"], "", "takes part in 'lab'"),
    (["app", "install", "lab", "hello_world"], "hello\n", "processors greet"),
    (["job", "cancel", JOB_ID], "", "is canceled"),
    (["token", "create", "notebook"], "token-once\n", "PAIRIO_API_KEY"),
]


@pytest.mark.parametrize(("command", "out", "err"), DOING, ids=lambda v: str(v)[:30])
def test_a_command_says_what_it_did_on_stderr(
    command: list[str], out: str, err: str, lab: FakeNode, run: Run
) -> None:
    done = run(*command)
    assert (done.code, done.out) == (0, out)
    assert err in done.err
    json.loads(run(*command, "--json").out)


def test_bodies_are_what_the_api_takes(lab: FakeNode, run: Run, tmp_path: Path) -> None:
    run("app", "install", "lab", str(tmp_path), "--image", "me/image:1")
    run("token", "create", "notebook", "--read-only", "--expires", "2h")
    assert [a.body for a in lab.asked] == [
        {"source": str(tmp_path), "image": "me/image:1"},
        {"name": "notebook", "readOnly": True, "expiresSec": 7200},
    ]
    assert {a.token for a in lab.asked} == {lab.token}


def test_job_ls_hands_its_filters_on(lab: FakeNode, run: Run) -> None:
    run(*("job", "ls", "--service", "lab", "--status", "failed", "--tag", "é", "--limit", "3"))
    run(*("job", "ls", "--output", "bafya", "--input", "bafyb"))
    first, second = lab.asked
    assert first.query == {"serviceName": "lab", "status": "failed", "tag": "é", "limit": "3"}
    assert second.query == {"limit": "50", "output": "bafya", "input": "bafyb"}


def test_logs_and_outputs_are_bytes_on_stdout(
    lab: FakeNode, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("get", JOB_ID, "output").out == "hello"
    target = tmp_path / "greeting.txt"
    got = run("get", JOB_ID, "output", "-o", str(target))
    assert (got.code, got.out, target.read_bytes()) == (0, f"{target}\n", b"hello")
    assert "Wrote 5 bytes" in got.err
    assert run("job", "logs", JOB_ID).code == 0


def test_open_prints_the_link(lab: FakeNode, run: Run) -> None:
    opened = run("open", JOB_ID, "--print")
    assert (opened.code, opened.out) == (0, "http://127.0.0.1:1/open/code\n")
    assert lab.calls("POST", "/links")[0].body == {"path": f"/job/{JOB_ID}"}


# -- submit --------------------------------------------------------------------------------


def test_submit_makes_the_definition_from_its_arguments(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "in.txt"
    file.write_text("abc")
    done = run(
        *("submit", "hello/greet", "-p", "name=a=b", "-p", "count=3", "-p", "ratio=0.5"),
        *("-p", "flag=true", "-p", 'names=["x"]', "-i", f"input={file}", "-o", "output=o.txt"),
        *("--cpus", "2", "--gpus", "1", "--memory-gb", "1.5", "--time-sec", "60", "--tag", "t"),
        *("--skip-cache", "--rerun-failing"),
    )
    assert (done.code, done.out) == (0, f"{JOB_ID}\n")
    assert lab.calls("POST", "/content")[0].body == b"abc"
    [asked] = lab.calls("POST", "/jobs")
    assert asked.body == {
        "serviceName": "lab",
        "jobDefinition": {
            "appName": "hello",
            "processorName": "greet",
            "inputFiles": [{"name": "input", "url": "ipfs://bafkadded", "fileBaseName": "in.txt"}],
            "outputFiles": [{"name": "output", "fileBaseName": "o.txt"}],
            "parameters": [
                {"name": "name", "value": "a=b"},
                {"name": "count", "value": 3},
                {"name": "ratio", "value": 0.5},
                {"name": "flag", "value": True},
                {"name": "names", "value": ["x"]},
            ],
        },
        "requiredResources": {"numCpus": 2.0, "numGpus": 1, "memoryGb": 1.5, "timeSec": 60.0},
        "tags": ["t"],
        "skipCache": True,
        "rerunFailing": True,
    }


@pytest.mark.parametrize("url", [f"job:{JOB_ID}/output", "https://example.org/x", "bafkxyz"])
def test_an_input_that_is_no_file_is_handed_on(url: str, lab: FakeNode, run: Run) -> None:
    run("submit", "hello/greet", "-i", f"input={url}")
    files = lab.calls("POST", "/jobs")[0].body["jobDefinition"]["inputFiles"]
    assert files == [{"name": "input", "url": url}]


@pytest.mark.parametrize(
    ("status", "code"), [("completed", 0), ("failed", 1), ("canceled", 1), ("blocked", 1)]
)
def test_submit_wait_ends_with_the_jobs_end(
    status: str, code: int, lab: FakeNode, run: Run
) -> None:
    ended = job(status=status, error=None if code == 0 else "it broke")
    lab.on("POST", "/jobs", job(status="pending", isSettled=False))
    lab.on("GET", f"/jobs/{ended['requestId']}/wait", ended)
    done = run("submit", "hello/greet", "--wait", "--json")
    assert done.code == code
    assert json.loads(done.out) == ended
    assert ("error: the job is" in done.err) == (code == 1)
    if code:
        assert "\n\nhint: pairio job why" in done.err, "there is no console yet"


def test_submit_wait_timeout_prints_the_job_and_exits_4(lab: FakeNode, run: Run) -> None:
    pending = job(status="running", isSettled=False)
    lab.on("POST", "/jobs", pending)
    lab.on("GET", f"/jobs/{pending['requestId']}/wait", pending)
    done = run("submit", "hello/greet", "--wait", "--timeout", "0.05", "--json")
    assert done.code == 4
    assert json.loads(done.out) == pending
    assert "the job goes on" in done.err
    assert "\n\nhint: pairio job why" in done.err
    assert run("submit", "hello/greet", "--wait", "--timeout", "0").code == 4


@pytest.mark.parametrize(
    ("command", "out", "hint"),
    [
        (("submit", "hello/greet", "--wait"), f"{JOB_ID}\n", "pairio job show"),
        (("join", "pairio:x"), "", "pairio-node status"),
    ],
)
def test_ctrl_c_ends_the_wait_only_and_says_what_goes_on(
    command: tuple[str, ...], out: str, hint: str, lab: FakeNode, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pairio._http import Api

    call = Api.call

    def interrupted(self: Api, method: str, path: str, *rest: Any) -> Any:
        if "/wait" in path or "/joins" in path:
            raise KeyboardInterrupt
        return call(self, method, path, *rest)

    lab.on("POST", "/jobs", job(status="pending", isSettled=False))
    monkeypatch.setattr(Api, "call", interrupted)
    ended = run(*command)
    assert (ended.code, ended.out) == (130, out)
    assert "interrupted; " in ended.err
    assert f"\n\nhint: {hint}" in ended.err


def test_ctrl_c_anywhere_else_is_told_too(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pairio._http import Api

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "call", interrupted)
    ended = run("service", "ls")
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")


def test_a_table_without_rows_says_so(lab: FakeNode, run: Run) -> None:
    lab.on("GET", "/offers", {"offers": []})
    none = run("service", "offers")
    assert (none.code, none.out) == (0, "SERVICE  ID  ADMINS\n")
    assert none.err == "Nothing waits for your consent\n"


@pytest.mark.parametrize("program", ["pairio", "pairio-node"])
def test_the_version_is_data(run: Run, program: str) -> None:
    asked = run("--version", program=program)
    assert (asked.code, asked.err) == (0, "")
    assert asked.out == f"pairio {version('pairio')}\n"


def test_help_says_once_what_an_argument_is(run: Run) -> None:
    asked = run("app", "install", "--help")
    assert asked.code == 0
    assert asked.out.count("SOURCE   A directory, or the name of a shipped app.") == 1
    assert asked.out.count("Name or id of the service.") == 1


def test_submit_and_show_print_the_same_document(lab: FakeNode, run: Run) -> None:
    submitted = json.loads(run("submit", "hello/greet", "--json").out)
    assert submitted == json.loads(run("job", "show", JOB_ID, "--json").out)


def test_the_service_may_be_left_out_when_there_is_one(lab: FakeNode, run: Run) -> None:
    lab.on("GET", "/services", {"services": [SERVICE, {**SERVICE, "serviceName": "other"}]})
    several = run("submit", "hello/greet")
    assert (several.code, "--service lab | other" in several.err) == (1, True)
    ended = {**SERVICE, "serviceName": "other", "ended": True}
    lab.on("GET", "/services", {"services": [ended, SERVICE]})
    assert run("submit", "hello/greet").code == 0, "one that has ended is not meant"
    lab.on("GET", "/services", {"services": []})
    none = run("submit", "hello/greet")
    assert (none.code, "pairio service create" in none.err) == (1, True)


# -- mistakes ------------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], int, str]] = [
    (["submit", "nix/greet"], 1, "has no app 'nix'"),
    (["submit", "hello/nix"], 1, "no processor 'nix'"),
    (["submit", "hello/greet", "-p", "name"], 1, "'name' is not name=value"),
    (["submit", "hello/greet", "-i", "input=/nowhere"], 1, "no file '/nowhere'"),
    (["submit", "hello/greet", "-i", "input=/dev/null"], 1, "neither file nor folder"),
    (["submit", "hello/greet", "-i", "input="], 1, "input 'input' is empty"),
    (["content", "add", ""], 1, "there is no ''"),
    (["app", "install", "lab", ""], 1, "no app was named"),
    (["submit", "hello/greet", "--timeout", "3"], 2, "--timeout is given without --wait"),
    (["submit", "hello/greet", "--wait", "--timeout", "-1"], 2, "--timeout"),
    (["submit", "hello/greet", "--cpus", "many"], 2, "'many'"),
    (["submit", "--service", "nix", "hello/greet"], 1, "/services/nix/apps"),
    (["submit"], 2, "Missing argument"),
    (["submit", "hello/greet", "-o", "nix=x"], 1, "no output 'nix'"),
    (["submit", "hello/greet", "--cpus", "0"], 2, "--cpus"),
    (["job", "ls", "--status", "nix"], 2, "'nix'"),
    (["job", "ls", "--limit", "0"], 2, "--limit"),
    (["service", "rename", "lab"], 2, "hint: pairio service rename --help"),
    (["job", "show", "bafygone"], 1, "no /api/v1/jobs/bafygone"),
    (["job", "show", ""], 1, "no /api/v1/jobs/"),
    (["job", "show", "../services"], 1, "no /api/v1/jobs/../services"),
    (["job", "show", "\udcff"], 1, "no /api/v1/jobs/"),
    (["job", "why", "bafygone"], 1, "bafygone"),
    (["job", "cancel", "bafygone"], 1, "bafygone"),
    (["job", "logs", "bafygone"], 1, "bafygone"),
    (["job", "ls", "--limit", "x"], 2, "'x'"),
    (["get", "bafygone", "output"], 1, "bafygone"),
    (["get", JOB_ID, "nix"], 1, "nix"),
    (["open", "bafygone", "--print"], 1, "bafygone"),
    (["service", "show", "nix"], 1, "nix"),
    (["service", "accept", "nix"], 1, "nix"),
    (["app", "install", "nix", "hello_world"], 1, "nix"),
    (["app", "ls", "nix"], 1, "nix"),
    (["token", "create", "x", "--expires", "soon"], 2, "'soon'"),
    (["token", "create", "x", "--expires", "²d"], 2, "'²d'"),
    (["token", "create", "x", "--expires", "0s"], 2, "'0s'"),
    (["nix"], 2, "No such command 'nix'"),
    (["job", "nix"], 2, "No such command 'nix'"),
    (["--nix"], 2, "No such option"),
]


@pytest.mark.parametrize(("command", "code", "says"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_answered_in_words_with_a_hint(
    command: list[str], code: int, says: str, lab: FakeNode, run: Run
) -> None:
    wrong = run(*command)
    assert wrong.code == code
    assert wrong.out == ""
    assert says in wrong.err
    assert wrong.err.startswith("error: ")
    assert "\n\nhint: " in wrong.err
    assert lab.calls("POST", "/jobs") == []


@pytest.mark.parametrize(("status", "code"), [(400, 1), (404, 1), (507, 1), (500, 3), (503, 3)])
def test_a_refusal_is_1_and_a_failure_of_the_node_3(
    status: int, code: int, node: FakeNode, run: Run
) -> None:
    node.refuse("GET", "/services", status, "it is so", "do that")
    refused = run("service", "ls")
    assert (refused.code, refused.out) == (code, "")
    assert refused.err == "error: it is so\n\nhint: do that\n"


def test_a_wrong_token_is_said(node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRIO_API_KEY", "wrong")
    refused = run("service", "ls")
    assert (refused.code, "no token that allows this" in refused.err) == (1, True)
    monkeypatch.setenv("PAIRIO_API_KEY", "two\nlines")
    assert run("service", "ls").code == 1


def test_without_a_node_the_hint_is_to_start_one(
    node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAIRIO_API_URL")
    for command in (["service", "ls"], ["job", "ls"], ["submit", "hello/greet"]):
        alone = run(*command)
        assert (alone.code, alone.out) == (1, "")
        assert "no node runs on" in alone.err
        assert alone.err.endswith("hint: start one: pairio-node run; wait for its line `ready`\n")
    assert run("status", program="pairio-node").code == 1


@pytest.mark.parametrize(
    "url", ["https://pairio.vercel.app", "http://127.0.0.1:x", "http://", "nonsense", "http://[::1"]
)
def test_a_wrong_api_url_is_named(
    url: str, node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_API_URL", url)
    wrong = run("service", "ls")
    assert (wrong.code, wrong.out) == (1, "")
    assert f"PAIRIO_API_URL is {url!r}" in wrong.err
    assert "unset it" in wrong.err


def test_something_else_at_the_url_is_said(node: FakeNode, run: Run) -> None:
    node.on("GET", "/services", Raw(b"<html>"))
    other = run("service", "ls")
    assert (other.code, "is no pairio node" in other.err) == (1, True)


def test_a_bug_is_exit_3_and_says_how_to_report_it(node: FakeNode, run: Run) -> None:
    node.on("GET", "/services", {"services": [{}]})
    bug = run("service", "ls")
    assert bug.code == 3
    assert "a bug in pairio: KeyError" in bug.err
    assert "\n\nhint: run again with PAIRIO_DEBUG=1" in bug.err


def test_help_is_data_and_names_an_example(run: Run) -> None:
    shown = run("submit", "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "Example: pairio submit" in " ".join(shown.out.split())
    bare = run()
    assert (bare.code, bare.out) == (2, "")


# -- pairio-node ---------------------------------------------------------------------------


def test_init_prints_the_id_and_is_the_same_again(run: Run, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    first = run("init", "--home", home, program="pairio-node")
    assert first.code == 0
    assert first.out.startswith("12D3KooW")
    assert "keep it secret" in first.err
    assert run("init", "--home", home, program="pairio-node").out == first.out


def test_init_on_a_file_or_a_corrupt_home_is_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    on_file = run("init", "--home", str(file), program="pairio-node")
    assert (on_file.code, on_file.out) == (1, "")
    assert "\n\nhint: " in on_file.err
    home = tmp_path / "home"
    home.mkdir()
    (home / "node.key").write_text("garbage")
    corrupt = run("init", "--home", str(home), program="pairio-node")
    assert (corrupt.code, "node.key" in corrupt.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "nonsense"], "nonsense"),
        (["--bootstrap", "/ip4/127.0.0.1/tcp/1"], "/p2p/"),
        (["--relay", "/ip4/127.0.0.1/tcp/1"], "relays address"),
        (["--listen", "/ip4/1.2.3.4/udp/1"], "/ip4/1.2.3.4/udp/1"),
        (["--listen", "/ip4/1.2.3.4/tcp/x"], "/ip4/1.2.3.4/tcp/x"),
        (["--cpus", "-1"], "cpus"),
        (["--memory-gb", "-1"], "memory_gb"),
        (["--gpus", "-1"], "gpus"),
        (["--api-port", "99999"], "api_port"),
    ],
    ids=str,
)
def test_a_wrong_setting_of_run_is_said_before_anything_starts(
    arguments: list[str], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_HOME", str(tmp_path / "home"))
    wrong = run("run", "--no-watchdog", *arguments, program="pairio-node")
    assert wrong.code in (1, 2)
    assert wrong.out == ""
    assert says in wrong.err
    assert "\n\nhint: " in wrong.err


def test_show_says_what_the_run_used(lab: FakeNode, run: Run) -> None:
    usage = {"wall_ms": 3400, "cpu_ms": 1200, "memory_peak_bytes": 25_100_000}
    usage |= {"disk_peak_bytes": 0, "read_bytes": 0, "written_bytes": 2000}
    lab.on("GET", f"/jobs/{JOB_ID}", job(usage=usage))
    shown = run("job", "show", JOB_ID).out
    assert "used       3.40 s, 1.20 s of CPU, memory 25.1 MB, written 2.0 kB\n" in shown
