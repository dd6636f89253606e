"""What a sandbox shows of this machine's interpreter."""

import sys
import sysconfig
from pathlib import Path

import pytest

from pairio_node.runner.mounts import Mounts


def shown(monkeypatch: pytest.MonkeyPatch, prefix: Path, **build: object) -> list[tuple[str, ...]]:
    """Return the mounts of a system whose interpreter was built so: (kind, what, where)."""
    real = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: build.get(name, real(name)))
    monkeypatch.setattr(sys, "base_prefix", str(prefix))
    argv = Mounts(0).system()
    return [tuple(argv[at : at + 3]) for at, word in enumerate(argv) if word == "--ro-bind"]


def test_an_interpreter_that_is_a_shared_library_has_it_where_it_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = "libpython3.12.so.1.0", tmp_path / "lib"
    folder.mkdir()
    built = {"Py_ENABLE_SHARED": 1, "LIBDIR": str(folder), "INSTSONAME": name}
    library = ("--ro-bind", f"{folder}/{name}", f"{folder}/{name}")
    assert library not in shown(monkeypatch, tmp_path, **built), "it was moved, and finds it itself"
    (folder / name).touch()
    found = shown(monkeypatch, tmp_path, **built)
    assert library in found
    assert ("--ro-bind", str(tmp_path), "/opt/pairio/python") in found
    assert library not in shown(monkeypatch, tmp_path, **built | {"Py_ENABLE_SHARED": 0})
    assert library not in shown(monkeypatch, Path("/usr"), **built)
