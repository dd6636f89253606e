"""The rules of the house, as tests."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "pairio_protocol": ROOT / "protocol" / "pairio_protocol",
    "pairio_node": ROOT / "pairio_node",
    "pairio": ROOT / "sdk" / "pairio",
    "pairio_cli": ROOT / "cli" / "pairio_cli",
    "pairio_apps": ROOT / "apps" / "pairio_apps",
}
FUNCTION_LINES_MAX = 70


def _sources() -> Iterator[Path]:
    for folder in PACKAGES.values():
        yield from sorted(folder.rglob("*.py"))


def test_imports_go_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", list(_sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def test_public_names_are_sorted_and_exist() -> None:
    for name, folder in PACKAGES.items():
        for info in pkgutil.walk_packages([str(folder)], f"{name}."):
            if info.name.endswith((".main", ".node_entry")):
                continue
            module = importlib.import_module(info.name)
            names = getattr(module, "__all__", [])
            in_order = sorted(names, key=lambda n: (not n.isupper(), not n[:1].isupper(), n))
            assert list(names) == in_order, info.name
            assert [n for n in names if not hasattr(module, n)] == [], info.name


def test_unit_tests_do_not_sleep() -> None:
    for folder in ("protocol", "node", "sdk", "cli", "house", "simulation"):
        for path in (ROOT / "tests" / folder).rglob("*.py"):
            found = re.findall(r"\bsleep\((?!0\))", path.read_text())
            assert found == [] or path == Path(__file__), path


@pytest.mark.parametrize(
    "script", ["gen_cli_docs", "gen_http_docs", "gen_limits_docs", "gen_settings_docs"]
)
def test_the_reference_is_that_of_the_code(script: str) -> None:
    path = ROOT / "scripts" / script
    run = subprocess.run([sys.executable, str(path), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_tables_of_the_specification_are_those_of_the_code() -> None:
    script = ROOT / "scripts" / "gen_spec_tables"
    run = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_setting_is_documented() -> None:
    from pairio_node.config import NodeConfig

    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert [f.name for f in fields(NodeConfig) if f"`{f.name}`" not in page] == []


def test_every_record_and_message_is_in_the_specification() -> None:
    from pairio_protocol.messages import MESSAGES
    from pairio_protocol.records import RECORDS

    page = (ROOT / "protocol" / "SPEC.md").read_text()
    kinds = [*MESSAGES.kinds(), *RECORDS.kinds()]
    assert [kind for kind in kinds if f"`{kind}`" not in page] == []


def test_nobody_is_told_to_install_the_original() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"pip install (--upgrade )?pairio\b", path.read_text()), path


def test_the_command_line_starts_light() -> None:
    code = "import sys, pairio_cli.main; print([m for m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"libp2p", "trio", "pydantic", "httpx", "fastapi", "pairio_node"}
    assert heavy & set(ast.literal_eval(run.stdout)) == set()


def test_the_part_of_the_sdk_inside_jobs_is_standard_library() -> None:
    code = "import sys, pairio.sdk; print([m for m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "sdk")},
    )
    assert "pydantic" not in ast.literal_eval(run.stdout)
