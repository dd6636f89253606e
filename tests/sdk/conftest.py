"""The SDK against a fake node; nothing of the machine's own node or of an owner's variables."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.fake_node import FakeNode


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNode]:
    """A fake node that PAIRIO_API_URL and PAIRIO_API_KEY name."""
    from pairio.client import _jobs

    monkeypatch.setattr(_jobs, "_default", None)
    monkeypatch.delenv("PAIRIO_SERVICE_NAME", raising=False)
    monkeypatch.setenv("PAIRIO_HOME", str(tmp_path / "home"))
    with FakeNode() as fake:
        monkeypatch.setenv("PAIRIO_API_URL", fake.url)
        monkeypatch.setenv("PAIRIO_API_KEY", fake.token)
        yield fake
        client = _jobs._default
        if client is not None:
            client.close()
