"""The API's routes about the cache."""

from pathlib import Path

import pytest

from tests.node.test_api import Client


@pytest.fixture
def api(tmp_path: Path) -> Client:
    return Client(tmp_path)


async def test_what_is_asked_for_is_handed_on_and_the_answer_back(api: Client) -> None:
    assert (await api("GET", "/api/v1/cache")).json == {"usedBytes": 1}
    assert (await api("GET", "/api/v1/cache/roots?limit=7")).json["count"] == 0
    assert (await api("POST", "/api/v1/cache/gc", {"dryRun": True})).json == {"freedBytes": 0}
    await api("POST", "/api/v1/cache/gc", {"everything": True})
    pin = {"name": "bafyjob", "serviceName": "lab"}
    assert (await api("POST", "/api/v1/cache/pins", pin)).json == {"name": "bafyjob"}
    assert (await api("GET", "/api/v1/cache/pins")).json == {"pins": [{"name": "bafyjob"}]}
    assert (await api("DELETE", "/api/v1/cache/pins/bafyjob")).json == {"name": "bafyjob"}
    assert api.facade.asked == [
        ("ls", 7),
        ("gc", False, True),
        ("gc", True, False),
        ("pin", "bafyjob", "lab"),
    ]


async def test_what_is_not_pinned_is_an_error_with_a_hint(api: Client) -> None:
    answer = await api("DELETE", "/api/v1/cache/pins/nothing")
    assert answer.status == 404
    assert answer.error["message"] == "'nothing' is not pinned"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/cache/roots?limit=0", None),
        ("GET", "/api/v1/cache/roots?limit=10001", None),
        ("POST", "/api/v1/cache/gc", {"dry": True}),
        ("POST", "/api/v1/cache/pins", {"name": ""}),
        ("POST", "/api/v1/cache/pins", {"name": "x" * 201}),
        ("POST", "/api/v1/cache/pins", {}),
    ],
)
async def test_nonsense_is_refused_before_anything_is_done(
    method: str, path: str, body: object, api: Client
) -> None:
    assert (await api(method, path, body)).status == 422
    assert api.facade.asked == []
