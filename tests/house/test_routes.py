"""What the command line and the SDK ask of a node is what its API has."""

import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from pairio_node.api.app import make_app

ROOT = Path(__file__).parents[2]
CLIENTS = sorted([*(ROOT / "cli").rglob("*.py"), *(ROOT / "sdk").rglob("*.py")])
_PATH = re.compile(r'f?"(/api/v1/[^"\n]*)"')
_OF_A_SERVICE = re.compile(r'service_path\(\w+, f?"([^"\n]*)"')


def asked(source: str) -> Iterator[str]:
    """Yield the paths in a source file, with x in place of what is only known when it runs."""
    found = _PATH.findall(source)
    found += [f"/api/v1/services/x/{rest}" for rest in _OF_A_SERVICE.findall(source)]
    for path in found:
        if not path.endswith(("/{rest}", "/{what}")):
            yield re.sub(r"\{[^}]*\}", "x", path)


def routes() -> list[re.Pattern[str]]:
    """Return what the paths of the API look like."""
    app = make_app(MagicMock(), MagicMock())
    paths = [str(getattr(route, "path", "")) for route in app.routes]
    return [
        re.compile(re.sub(r"\{\w+\}", "[^/]+", re.sub(r"\{\w+:path\}", ".+", path)))
        for path in paths
    ]


@pytest.mark.parametrize("source", CLIENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_client_asks_for_has_a_route(source: Path) -> None:
    known = routes()
    paths = set(asked(source.read_text()))
    assert {path for path in paths if not any(r.fullmatch(path) for r in known)} == set()


def test_a_path_without_a_route_would_be_noticed() -> None:
    [old] = asked('api.call("POST", f"/api/v1/services/{_SERVICE}/members", body)')
    assert not any(route.fullmatch(old) for route in routes())
    [new] = asked('api.call("POST", service_path(name, f"apps/{part(app)}"))')
    assert any(route.fullmatch(new) for route in routes())
