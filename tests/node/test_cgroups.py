"""Control groups of jobs: where they can be made and what is written, on files for a kernel.

What the kernel does with it is held by `tests/integration/test_limits.py` where it can be made.
"""

import os
from pathlib import Path

import pytest

from pairio_node.runner.cgroups import Delegation, JobCgroup, delegation, probe, remove_named
from pairio_node.runner.supervisor import cgroups

OWN = "user.slice/pairio.service"


class Kernel:
    """A folder with what this process reads in /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, own: str, mounts: str, groups: str) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text(groups)
        (self.proc / "self" / "mounts").write_text(mounts.format(sys=self.sys))
        for pid, parent in ((os.getpid(), 500), (500, 1), (1, 0), (600, os.getpid()), (700, 1)):
            (self.proc / str(pid)).mkdir()
            (self.proc / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} 1 1")
        self.group = self.sys / own
        self.group.mkdir(parents=True)

    def put(self, **files: str) -> None:
        for name, text in files.items():
            (self.group / name.replace("__", ".")).write_text(text)


@pytest.fixture
def version_2(tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path, OWN, "cgroup2 {sys} cgroup2 rw 0 0\n", f"0::/{OWN}\n")
    kernel.put(
        cgroup__controllers="cpuset cpu io memory pids\n",
        cgroup__procs=f"{os.getpid()}\n500\n600\n",
        cgroup__subtree_control="",
    )
    return kernel


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was written to the kernel, in order: (file, text)."""
    found: list[tuple[str, str]] = []

    def put(path: Path, text: str) -> None:
        found.append((path.name, text))
        path.write_text(text)

    monkeypatch.setattr(cgroups, "_put", put)
    return found


def test_a_delegated_group_gives_its_controllers_to_jobs(
    version_2: Kernel, written: list[tuple[str, str]]
) -> None:
    assert probe(version_2.proc) == ("cgroup", "", "")
    assert written == []  # who only asks moves nobody
    found = delegation(version_2.proc)
    assert found == Delegation(2, dict.fromkeys(("memory", "cpu", "pids"), str(version_2.group)))
    # The node leaves first: a group with processes of its own gives no controller on.
    moved = [("cgroup.procs", str(pid)) for pid in (os.getpid(), 500, 600)]
    assert written == [*moved, ("cgroup.subtree_control", "+memory +cpu +pids")]


def test_a_node_that_was_started_again_in_its_leaf_finds_the_group_above(
    version_2: Kernel,
) -> None:
    leaf = version_2.group / "pairio-node"
    leaf.mkdir()
    (version_2.proc / "self" / "cgroup").write_text(f"0::/{OWN}/pairio-node\n")
    version_2.put(cgroup__procs="")
    assert delegation(version_2.proc).parents["memory"] == str(version_2.group)


def test_a_group_with_other_peoples_processes_is_left_as_it_is(version_2: Kernel) -> None:
    version_2.put(cgroup__procs=f"{os.getpid()}\n700\n")
    which, why, hint = probe(version_2.proc)
    assert (which, why) == (
        "watchdog",
        "the node's control group has processes that are not the node's",
    )
    assert "Delegate=" in hint


def test_a_group_without_memory_holds_nothing(version_2: Kernel) -> None:
    version_2.put(cgroup__controllers="hugetlb\n")
    assert probe(version_2.proc)[:2] == (
        "watchdog",
        "the node's control group has no memory controller",
    )


def test_a_system_without_control_groups_says_so(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "x", "proc /proc proc rw 0 0\n", "")
    assert probe(kernel.proc)[1] == "this system has no control groups"


def test_a_higher_bound_of_memory_is_not_kept_out_by_the_lower_one_with_swap(
    tmp_path: Path, written: list[tuple[str, str]]
) -> None:
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    group = JobCgroup(1, {"memory": str(tmp_path)})
    group.bound(2**28, 0, 0)
    group.bound(2**30, 0, 0)  # of a worker that waited with the bounds of a smaller job
    with_swap, alone = "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"
    assert written == [
        step
        for size in ("268435456", "1073741824")
        for step in ((with_swap, "-1"), (alone, size), (with_swap, size))
    ]


def test_bounds_of_a_job_in_version_2(
    tmp_path: Path, written: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def mkdir(folder: Path) -> None:
        make(folder)
        (folder / "cpu.max").touch()  # as the kernel does

    monkeypatch.setattr(Path, "mkdir", mkdir)
    found = Delegation(2, dict.fromkeys(("memory", "cpu", "pids"), str(tmp_path)))
    group = JobCgroup.create(found, "a", memory_bytes=2**30, cpu_millicores=1500, processes_max=512)
    assert written == [
        ("memory.max", "1073741824"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("pids.max", "512"),
    ]
    files = {
        "memory.current": "700",
        "memory.stat": "anon 100\nfile 500\nshmem 50\n",
        "memory.events": "low 0\noom 3\noom_kill 2\n",
        "cpu.stat": "usage_usec 5500\nuser_usec 1\n",
        "pids.current": "4",
        "pids.events": "max 7\n",
        "cgroup.procs": "0\n",
    }
    for name, text in files.items():
        (tmp_path / "pairio-job-a" / name).write_text(text)
    used = group.usage()
    assert (used.cpu_ms, used.memory_bytes, used.processes) == (5, 250, 4)
    assert (group.oom_kills(), group.refused_processes()) == (2, 7)
    assert group.processes() == []  # 0 would be whoever calls


def test_folders_that_are_no_group_of_a_job_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pairio-job-x").mkdir()
    remove_named(1, {"memory": str(tmp_path / "pairio-job-x")})
    remove_named(1, {"memory": str(tmp_path)})
    assert (tmp_path / "pairio-job-x").is_dir()
