"""A second try for tests that run by the machine's clock, in CI alone, counted and told.

Over a thousand tests start nodes, processes, sockets and sandboxes on a machine that others use
too; one of them that loses a race with that machine shall not stop a change. A test that fails
twice fails, and so does a run in which more than SECOND_TRIES_MAX needed the second try: then it is
the code. What failed the first time is printed in full, so that it can be mended.
"""

import os
from pathlib import Path

import pytest

SECOND_TRIES_MAX = 5
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a second try to what lies under integration/ and node/."""
    if os.environ.get("CI") != "true":
        return
    for item in items:
        if {_HERE / "integration", _HERE / "node"} & set(item.path.parents):
            item.add_marker(pytest.mark.flaky(reruns=1))


def _second_tries(session: pytest.Session) -> list[pytest.TestReport]:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    return list(reporter.stats.get("rerun", [])) if reporter else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with too many second tries."""
    if len(_second_tries(session)) > SECOND_TRIES_MAX and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a second try was needed."""
    tries = terminalreporter.stats.get("rerun", [])
    for report in tries:
        terminalreporter.section(f"first try failed: {report.nodeid}")
        terminalreporter.write_line(str(report.longrepr)[-6000:])
    if len(tries) > SECOND_TRIES_MAX:
        terminalreporter.section(f"{len(tries)} second tries, {SECOND_TRIES_MAX} are allowed")
