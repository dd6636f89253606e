"""Limits of a job: what a look finds, in which words it is told, and what is sampled."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from pairio_node.runner.bounds import (
    JobBounds,
    explained,
    is_nodes_own,
    passed_words,
    processes_rlimit,
    processes_rlimit_shared,
    rlimits,
    size_words,
)
from pairio_node.runner.cgroups import Delegation, JobCgroup
from pairio_node.runner.supervisor import watch as watch_module
from pairio_node.runner.supervisor.samples import SAMPLES_MAX, Samples
from pairio_node.runner.supervisor.watch import Bounds, Passed, Watch
from pairio_protocol.limits import JOB_DISK_BYTES_MAX, JOB_PROCESSES_MAX

GIB = 2**30


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (Passed("memory", GIB + GIB // 10, GIB), "memory: used 1.1 GiB of at most 1 GiB"),
        (Passed("disk", 5 * GIB, 4 * GIB), "disk: used 5 GiB of at most 4 GiB"),
        (Passed("outputs", 700, 512), "outputs: they have 700 bytes of at most 512 bytes"),
        (Passed("time", 1500, 1500), "time: ran 1.5 s of at most 1.5 s"),
        (Passed("processes", 513, 512), "processes: 513 of at most 512"),
        (Passed("files", 11, 10), "files: 11 of at most 10"),
        (Passed("folders", 200, 199), "folders: 200 levels deep of at most 199"),
        (
            Passed("machine", 2**20, GIB),
            "memory: this node had none left, when the job used 1 MiB of its 1 GiB",
        ),
        (Passed("room", 2**20, GIB), "disk: this node has 1 MiB left, and jobs must leave 1 GiB"),
    ],
)
def test_a_bound_that_was_passed_is_told_with_value_and_bound(passed: Passed, words: str) -> None:
    assert passed_words(passed) == words


def test_a_bound_that_every_node_has_is_the_jobs_and_a_tighter_one_the_nodes() -> None:
    assert not is_nodes_own(Passed("processes", 600, JOB_PROCESSES_MAX))
    assert is_nodes_own(Passed("processes", 100, JOB_PROCESSES_MAX - 1))
    assert is_nodes_own(Passed("disk", GIB + 1, GIB))
    assert not is_nodes_own(Passed("disk", JOB_DISK_BYTES_MAX + 1, JOB_DISK_BYTES_MAX))
    assert is_nodes_own(Passed("room", 0, GIB))
    assert not is_nodes_own(Passed("memory", 2, 1))  # the request asked for it


def test_words_of_the_system_for_a_bound_are_explained() -> None:
    said = explained("OSError: [Errno 24] Too many open files: 'x'", JobBounds())
    assert said.endswith("(a job may have 4096 files open at a time)")
    assert explained("ValueError: it broke", JobBounds()) == "ValueError: it broke"


def test_the_address_space_is_never_bounded_and_descriptors_never_beyond_the_nodes_own() -> None:
    options = rlimits(JobBounds(open_files=2**20, disk_bytes=7), 576)
    assert not any(option.startswith("--as") for option in options)
    assert "--fsize=7:7" in options
    assert "--nofile=1048576:1048576" not in options or os.sysconf("SC_OPEN_MAX") >= 2**20
    assert not any("nproc" in option for option in rlimits(JobBounds(), None))


def test_no_limit_is_above_what_this_process_may_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prlimit` would refuse to start the job."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 200))
    assert "--nproc=200:200" in rlimits(JobBounds(), 576)
    assert "--nproc=150:150" in rlimits(JobBounds(), 150)
    assert "--nofile=200:200" in rlimits(JobBounds(), None)


def test_without_a_sandbox_the_system_bounds_a_users_processes_far_above_what_there_is(
    tmp_path: Path,
) -> None:
    user = os.geteuid() or 12345
    for pid, threads in (("1", 3), ("22", 5), ("self", 7)):
        for thread in range(threads):
            (tmp_path / pid / "task" / str(thread)).mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(tmp_path / pid, user, user)
    assert processes_rlimit_shared(user, tmp_path) == 8 + 8192
    assert processes_rlimit_shared(0, tmp_path) is None  # the kernel bounds no root
    assert processes_rlimit_shared(user + 1, tmp_path) == 8192


def test_processes_are_bounded_for_one_job_only_where_the_kernel_counts_each_sandbox_apart() -> (
    None
):
    bounds = JobBounds(processes=100)
    assert processes_rlimit(bounds, release="6.8.0-31-generic") == 164
    assert processes_rlimit(bounds, release="5.14") == 164
    # Here one job with many processes would keep the others from starting any.
    assert processes_rlimit(bounds, release="5.10.0-9-amd64") >= 8192


def test_sizes_are_told_as_people_read_them() -> None:
    assert [size_words(n) for n in (0, 1023, 1024, 1536 * 1024, 10**15)] == [
        "0 bytes",
        "1023 bytes",
        "1 KiB",
        "1.5 MiB",
        "909.5 TiB",
    ]


def test_a_watch_finds_what_this_process_holds(tmp_path: Path) -> None:
    here = [os.getpid()]
    assert Watch(Bounds(), tmp_path, lambda: here, None).look() is None
    passed = Watch(Bounds(memory_bytes=1), tmp_path, lambda: here, None).look()
    assert passed is not None
    assert (passed.which, passed.most, passed.used > 2**20) == ("memory", 1, True)


def test_forks_of_one_process_do_not_count_its_memory_again(tmp_path: Path) -> None:
    # The same pages seen through many processes: here, the same process many times is many times
    # as much, but what is shared out decides, and that is read only when the sum is too large.
    watch = Watch(Bounds(memory_bytes=2**50), tmp_path, lambda: [os.getpid()] * 4, None)
    assert watch.look() is None
    assert watch.usage(0, 0)["memory_peak_bytes"] > 2**20


@pytest.mark.parametrize(
    ("bounds", "which"),
    [
        (Bounds(disk_bytes=100_000), "disk"),
        (Bounds(disk_bytes=2**40, files=3), "files"),
        (Bounds(reserve_bytes=2**60, disk_bytes=2**40), "room"),
    ],
)
def test_a_watch_finds_what_a_folder_takes(
    bounds: Bounds, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_MUCH_BYTES", 0)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x" * 50_000)
    passed = Watch(bounds, tmp_path, list, None).look()
    assert passed is not None
    assert passed.which == which


def test_who_wrote_little_may_stay_a_while_when_the_disk_is_nearly_full(tmp_path: Path) -> None:
    watch = Watch(Bounds(reserve_bytes=2**60, disk_bytes=2**40), tmp_path, list, None)
    assert watch.look() is None
    watch._full_since_s = 0.0  # long ago
    passed = watch.look()
    assert passed is not None
    assert passed.which == "room"


def test_what_the_kernel_noted_counts_though_the_job_ended_well(tmp_path: Path) -> None:
    group = JobCgroup(2, dict.fromkeys(("memory", "pids"), str(tmp_path)))
    watch = Watch(Bounds(memory_bytes=5, processes=7), tmp_path, list, group)
    assert watch.ended() is None
    (tmp_path / "pids.events").write_text("max 2\n")
    assert watch.ended() == Passed("processes", 8, 7)
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert watch.ended() == Passed("memory", 5, 5)


def test_what_the_machine_could_not_give_is_not_the_jobs_failure(tmp_path: Path) -> None:
    group = JobCgroup(2, dict.fromkeys(("memory", "pids"), str(tmp_path)))
    watch = Watch(Bounds(memory_bytes=5, processes=7), tmp_path, list, group)
    for name, text in (("pids.events", "max 2\n"), ("pids.peak", "6\n"), ("pids.max", "7\n")):
        (tmp_path / name).write_text(text)  # a group above refused it
    assert watch.ended() is None
    (tmp_path / "memory.events").write_text("oom 0\noom_kill 1\n")
    passed = watch.ended()
    assert passed == Passed("machine", 0, 5)
    assert is_nodes_own(passed)
    old = JobCgroup(1, {"memory": str(tmp_path)})
    assert not old.met_its_memory()
    (tmp_path / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text(f"{GIB // 2}\n")
    assert not old.met_its_memory()
    (tmp_path / "memory.max_usage_in_bytes").write_text(f"{GIB - 4096}\n")
    assert old.met_its_memory()


def test_samples_stay_few_and_spread_over_the_whole_run() -> None:
    samples = Samples()
    taken = 0
    for second in range(1, 3600):
        if samples.is_due(second):
            samples.take(second, {"cpu_ms": second})
            taken += 1
    ages = [sample["job"]["wall_ms"] // 1000 for sample in samples.taken]
    assert SAMPLES_MAX // 2 <= len(ages) <= SAMPLES_MAX
    assert ages == sorted(ages)
    steps = [later - earlier for earlier, later in pairwise(ages)]
    assert max(steps) <= 2 * min(steps)
    assert ages[-1] > 3400
    assert taken < 500


def test_a_sample_has_the_originals_fields() -> None:
    samples = Samples()
    samples.is_due(0)  # counted from here on
    samples.take(1, {"memory_bytes": 5})
    (sample,) = samples.taken
    assert set(sample) == {
        *(
            "timestamp",
            "cpu",
            "virtual_memory",
            "disk_io_counters",
            "net_io_counters",
            "gpu",
            "job",
        ),
    }
    memory = sample["virtual_memory"]
    assert 0 < memory["available"] <= memory["total"]
    assert 0 <= memory["percent"] <= 100
    assert sample["net_io_counters"]["bytes_recv"] >= 0
    assert sample["job"] == {"wall_ms": 1000, "memory_bytes": 5}


def test_groups_of_version_1_say_nothing_where_files_are_missing(tmp_path: Path) -> None:
    group = JobCgroup(1, {"memory": str(tmp_path)})
    used = group.usage()
    assert (used.cpu_ms, used.memory_bytes, used.processes) == (None, None, None)
    assert (group.oom_kills(), group.refused_processes(), group.bounds_cpu) == (0, 0, False)
    assert Delegation(1, {}).parents == {}
