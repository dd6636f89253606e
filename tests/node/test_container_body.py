"""What an engine is told of a job: nothing that an app or a submitter chose ends an option."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pairio_node.errors import UserError
from pairio_node.runner.base import RunInput, RunSpec
from pairio_node.runner.container.beside import beside_body
from pairio_node.runner.container.body import (
    Facts,
    Mount,
    container_body,
    is_safe_path,
    with_init,
)
from pairio_node.runner.container.engines import facts_of
from pairio_node.runner.container.files import job_mounts
from pairio_node.runner.container.settings import ContainerSettings, parse_container, sockets
from pairio_node.runner.gpus import Gpu
from pairio_node.runner.supervisor.container import Frames
from pairio_node.runner.supervisor.engine import Engine

DOCKER = Facts("/s", "Docker 1", False, False, True, False, "65534:65534")


def _spec(work: Path, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "attempt": "a",
        "job_id": "j",
        "service": "s",
        "app": "a",
        "processor": "p",
        "executable": "main.sh",
        "bundle": work / "bundle",
        "inputs": (),
        "list_inputs": (),
        "outputs": (),
        "parameters": [],
        "cpu_millicores": 1500,
        "memory_mib": 100,
        "gpus": 0,
        "time_ms": 1000,
        "work_dir": work / "job",
        **changes,
    }
    return RunSpec(**fields)


def _host(facts: Facts = DOCKER, **changes: Any) -> dict[str, Any]:
    spec = _spec(Path("/w"), **changes)
    body = container_body(spec, facts, "h", ["x"], {}, [Mount(Path("/a"), "/b")], "i", "{}")
    return dict(body["HostConfig"])


def test_a_container_is_closed_in_every_way_that_engines_offer() -> None:
    host = _host()
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]
    assert host["Mounts"][0]["ReadOnly"] is True
    assert host["LogConfig"] == {"Type": "none"}  # logs of the engine have no bound
    assert all("size=" in options for options in host["Tmpfs"].values())
    assert {"CapAdd", "Privileged", "Devices", "DeviceRequests", "Binds"} & {*host} == set()


def test_only_a_run_that_may_gets_a_network_and_streams_get_that_of_another_container() -> None:
    spec = _spec(Path("/w"))
    body = container_body(spec, DOCKER, "h", ["x"], {}, [], "i", "{}")
    assert body["NetworkDisabled"] is True
    assert _host(network="full")["NetworkMode"] == "host"
    shared = container_body(spec, DOCKER, "h", ["x"], {}, [], "i", "{}", "beside")
    assert shared["HostConfig"]["NetworkMode"] == "container:beside"
    assert "Hostname" not in shared  # engines refuse a name of its own beside another's network


def test_what_stands_beside_a_job_is_as_closed_as_a_job_and_has_nothing_of_it() -> None:
    streams = Path("/runs/one/streams/socket")
    spec = _spec(Path("/runs/one"), stream_folder=streams, secrets={"T": "secret"})
    body = beside_body(spec, DOCKER, "h", "skeleton", "{}")
    host = body["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]
    assert body["User"] == "65534:65534"
    assert host["Memory"] < 2**28
    of_the_job = [m["Source"] for m in host["Mounts"] if m["Source"].startswith("/runs/")]
    assert of_the_job == [str(streams)]
    assert all(mount["ReadOnly"] for mount in host["Mounts"])
    assert "secret" not in json.dumps(body).replace("secrets", "")


def test_gpus_are_those_of_the_run_by_uuid_and_else_none() -> None:
    asked = _host(gpu_devices=(Gpu("GPU-a", 0), Gpu("GPU-b", 3)))["DeviceRequests"]
    assert asked[0]["DeviceIDs"] == ["GPU-a", "GPU-b"]
    assert {"DeviceRequests", "Devices"} & {*_host()} == set()


def test_limits_are_those_of_the_run() -> None:
    host = _host()
    assert host["Memory"] == host["MemorySwap"] == 100 * 2**20
    assert host["CpuQuota"] / host["CpuPeriod"] == 1.5
    assert host["PidsLimit"] == _spec(Path("/w")).bounds.processes
    assert {limit["Name"] for limit in host["Ulimits"]} == {"nofile", "nproc", "core", "fsize"}
    assert _host(nice=19)["CpuShares"] < host["CpuShares"]


def test_separation_by_labels_is_left_to_selinux_hosts_alone() -> None:
    assert "label=disable" in _host(replace(DOCKER, has_selinux=True))["SecurityOpt"]


@pytest.mark.parametrize("path", ["/a,readonly=false", '/a"b', "/a:/etc:rw", "/a\nb", "/a\\b"])
def test_paths_that_could_end_an_option_are_known(path: str) -> None:
    assert not is_safe_path(Path(path))
    assert is_safe_path(Path("/home/ädä/my data/x=1"))


def test_no_name_of_an_input_stands_in_a_mount(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("x")
    own.chmod(0o644)
    odd = tmp_path / "a,b.txt"
    odd.write_text("odd")
    name = "b,type=bind,source=/etc"
    inputs = (RunInput("a", name, own), RunInput("b", name, odd))
    (tmp_path / "job" / "tmp").mkdir(parents=True)
    (tmp_path / "bundle").mkdir()
    mounts = job_mounts(_spec(tmp_path, inputs=inputs), f"{os.geteuid()}:0")
    told = json.dumps([mount.body for mount in mounts])
    assert name not in told
    assert "a,b" not in told
    assert (tmp_path / "job" / "in" / "0" / name).readlink() == Path("/data/0")
    assert (tmp_path / "job" / "in" / "1" / name).read_text() == "odd"


def test_the_first_process_hands_signals_on_where_there_is_a_shell() -> None:
    assert with_init(["a", "b c"], False) == ["a", "b c"]
    assert with_init(["a", "b c"], True)[0] == "/bin/sh"
    assert with_init(["a", "b c"], True)[-2:] == ["a", "b c"]


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 1000])
def test_what_an_engine_sends_is_taken_apart_wherever_it_is_cut(step: int) -> None:
    pieces = [(1, b"hello\n"), (2, b""), (2, b"x" * 300), (1, b"end")]
    sent = b"".join(bytes([n, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for n, p in pieces)
    frames = Frames()
    said = b"".join(frames.feed(sent[at : at + step]) for at in range(0, len(sent), step))
    assert said == b"hello\n" + b"x" * 300 + b"end"


def test_settings_of_the_engine() -> None:
    assert parse_container({}) == ContainerSettings()
    given = parse_container({"socket": "unix:///run/d.sock", "images_bytes_max": 5})
    assert given == ContainerSettings(True, "/run/d.sock", 5)
    assert sockets(given) == ["/run/d.sock"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("docker", "give it a table"),
        ({"sokcet": "/x"}, "settings: enabled, socket"),
        ({"enabled": 1}, "true or false"),
        ({"socket": "tcp://x:1"}, "path of a unix socket"),
        ({"socket": 3}, "path of a unix socket"),
        ({"images_bytes_max": 0}, "number of bytes"),
        ({"images_bytes_max": True}, "number of bytes"),
    ],
)
def test_wrong_settings_are_said(raw: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_container(raw)
    assert words in str(caught.value.hint)


class _Answers(Engine):
    """An engine that answers as it was told."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("/none")
        self._answers = answers

    def ask(self, method: str, path: str, *more: Any, **options: Any) -> Any:
        return self._answers[path]


def _podman(rootless: bool, cgroups: str) -> Facts:
    info = {"MemoryLimit": True, "CgroupVersion": cgroups, "SecurityOptions": ["name=seccomp"]}
    version = {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}
    own = {"host": {"security": {"rootless": rootless, "selinuxEnabled": False}}}
    answers = {"/info": info, "/version": version, "/v4.3.1/libpod/info": own}
    return facts_of(_Answers(answers))


def test_podman_that_does_not_say_that_it_is_rootless_is_known_to_be() -> None:
    assert _podman(rootless=True, cgroups="1").is_rootless
    assert not _podman(rootless=True, cgroups="1").bounds_memory
    assert _podman(rootless=True, cgroups="2").bounds_memory
    assert _podman(rootless=False, cgroups="1").bounds_memory


def test_in_a_rootless_engine_jobs_are_not_root_and_own_their_files() -> None:
    assert _host(_podman(rootless=True, cgroups="2"))["UsernsMode"] == "keep-id"
    assert "UsernsMode" not in _host(_podman(rootless=False, cgroups="2"))
    assert not _podman(rootless=True, cgroups="2").user.startswith("0:")
