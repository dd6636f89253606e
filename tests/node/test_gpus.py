"""GPUs: found in a tree of the driver's, given to one run each, and the others are not there."""

from pathlib import Path

import pytest

from pairio_node.runner import RunSpec
from pairio_node.runner.gpus import Gpu, GpuPool, NoGpu, find_gpus
from pairio_node.runner.mounts import Mounts
from pairio_node.runner.process import common_environment
from tests.integration.runner_lab import script_spec

_ONE = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 91
GPU UUID: \t {uuid}
Bus Type: \t PCIe
Device Minor: \t {minor}
"""


def _machine(root: Path, *minors: int, devices: tuple[int, ...] | None = None) -> Path:
    """Make a tree as the driver has it."""
    (root / "dev").mkdir()
    for minor in minors:
        folder = root / f"proc/driver/nvidia/gpus/0000:0{minor}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(_ONE.format(uuid=f"GPU-{minor}a", minor=minor))
    for minor in minors if devices is None else devices:
        (root / f"dev/nvidia{minor}").touch()
    for name in ("nvidiactl", "nvidia-uvm") if minors else ():
        (root / "dev" / name).touch()
    return root


def test_gpus_are_found_by_uuid_and_number(tmp_path: Path) -> None:
    found = find_gpus(_machine(tmp_path, 1, 0))
    model = "NVIDIA H100 80GB HBM3"
    assert found == (Gpu("GPU-0a", 0, model), Gpu("GPU-1a", 1, model))


def test_a_gpu_without_a_device_is_none(tmp_path: Path) -> None:
    assert [gpu.minor for gpu in find_gpus(_machine(tmp_path, 0, 1, devices=(1,)))] == [1]


def test_a_machine_without_a_driver_has_none(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == ()
    (folder := tmp_path / "proc/driver/nvidia/gpus/x").mkdir(parents=True)
    (folder / "information").write_text("GPU UUID: ?\nDevice Minor: N/A\n")
    assert find_gpus(tmp_path) == ()


def test_each_gpu_is_given_to_one_run(tmp_path: Path) -> None:
    pool = GpuPool(find_gpus(_machine(tmp_path, 0, 1, 2)))
    first, second = pool.take("a", 2), pool.take("b", 1)
    assert {gpu.minor for gpu in (*first, *second)} == {0, 1, 2}
    assert pool.take("c", 0) == ()
    with pytest.raises(NoGpu, match="needs 1 GPUs, and 0 of 3 are free"):
        pool.take("c", 1)
    pool.give_back("a")
    pool.give_back("never there")
    assert len(pool.take("c", 2)) == 2


def test_a_run_of_an_earlier_start_keeps_its_gpu(tmp_path: Path) -> None:
    pool = GpuPool(find_gpus(_machine(tmp_path, 0, 1)))
    pool.keep("before", ("GPU-0a", "of another machine"))
    assert [gpu.minor for gpu in pool.take("now", 1)] == [1]
    with pytest.raises(NoGpu):
        pool.take("then", 1)


def test_a_job_sees_the_devices_that_it_was_given_and_no_other(tmp_path: Path) -> None:
    root = _machine(tmp_path, 0, 1)
    gpus = find_gpus(root)
    argv = Mounts(0).gpus(gpus[1:], root)
    shown = [argv[at + 1] for at, word in enumerate(argv) if word == "--dev-bind"]
    assert [Path(path).name for path in shown] == ["nvidia1", "nvidiactl", "nvidia-uvm"]
    assert argv[2] == "/dev/nvidia1"
    # Without one nothing is bound, and what the driver tells of the machine's GPUs is covered.
    assert Mounts(0).gpus((), root) == [
        *("--tmpfs", "/proc/driver/nvidia", "--remount-ro", "/proc/driver/nvidia")
    ]
    assert Mounts(0).gpus((), tmp_path / "no driver") == []


def _spec(tmp_path: Path, gpus: tuple[Gpu, ...]) -> RunSpec:
    return script_spec(tmp_path, "true", gpus=len(gpus), gpu_devices=gpus)


def test_libraries_are_told_the_uuids(tmp_path: Path) -> None:
    two = (Gpu("GPU-0a", 0), Gpu("GPU-1a", 1))
    variables = common_environment(_spec(tmp_path, two), "/tmp")
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-0a,GPU-1a"
    assert common_environment(_spec(tmp_path, ()), "/tmp")["CUDA_VISIBLE_DEVICES"] == ""
