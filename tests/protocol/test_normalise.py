"""One wish, one job id: however it is written down."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairio_protocol.apps import validate_app
from pairio_protocol.errors import DefinitionError
from pairio_protocol.normalise import job_id_of, normalise, parse_source, path_in_folder

VECTORS = json.loads(
    (Path(__file__).parents[2] / "protocol" / "vectors" / "definitions.json").read_text()
)
APP = validate_app(VECTORS["app"])


def _id(definition: dict[str, Any]) -> str:
    return job_id_of(normalise(definition, APP))


@pytest.mark.parametrize("vector", VECTORS["jobs"], ids=[v["name"] for v in VECTORS["jobs"]])
def test_a_definition_has_the_job_id_of_its_vector(vector: dict[str, Any]) -> None:
    assert _id(vector["definition"]) == vector["jobId"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=[v["name"] for v in VECTORS["refused"]])
def test_a_wrong_definition_is_refused_and_says_what_is_wrong(vector: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError) as caught:
        normalise(vector["definition"], APP)
    assert vector["says"] in str(caught.value)


def test_the_vectors_are_at_least_forty() -> None:
    assert len(VECTORS["jobs"]) + len(VECTORS["refused"]) + len(VECTORS["sources"]) >= 40


@pytest.mark.parametrize("vector", VECTORS["sources"], ids=[v["text"] for v in VECTORS["sources"]])
def test_a_source_is_what_its_text_means(vector: dict[str, Any]) -> None:
    assert parse_source(vector["text"]) == vector["source"]


@given(st.permutations(range(5)), st.floats(allow_nan=False, allow_infinity=False))
def test_order_never_matters(order: list[int], value: float) -> None:
    parameters = [
        {"name": "text", "value": "x"},
        {"name": "count", "value": 3},
        {"name": "ratio", "value": value},
        {"name": "flag", "value": True},
        {"name": "group.sub", "value": 1},
    ]
    wish = {"appName": "vectors", "processorName": "typed", "outputFiles": [{"name": "out"}]}
    assert _id({**wish, "parameters": parameters}) == _id(
        {**wish, "parameters": [parameters[i] for i in order]}
    )


def test_what_lies_in_a_folder_is_named_by_its_own_cid_and_never_by_the_folders() -> None:
    cid = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
    for text, path in (
        (f"http://127.0.0.1:1/ipfs/{cid}/name/a%20b/c%2Fd?k=1", ("a b", "c/d")),
        (f"http://localhost/ipfs/{cid}/name/x/", ("x",)),
        (f"ipfs://{cid}/a%20b/c", ("a b", "c")),
    ):
        assert path_in_folder(text) == (cid, path)
        with pytest.raises(DefinitionError):
            parse_source(text)
    for text in (
        f"http://127.0.0.1:1/ipfs/{cid}/name/?k=1",
        f"https://ipfs.io/ipfs/{cid}/a/b",
        f"ipfs://{cid}/",
        "http://127.0.0.1/other/a/b/c",
    ):
        assert path_in_folder(text) is None


def test_a_cid_of_version_0_is_the_version_1_that_names_the_same_block() -> None:
    old = "QmPTvXqWBZeCAsu6nu5QbHaXR2jpkWbrQ5ynUXR2VJq6yQ"  # vector A of pat3m
    new = parse_source(old)
    assert new["cid"].startswith("bafybei")
    assert parse_source(f"ipfs://{old}") == new
    assert parse_source(new["cid"]) == new
    for text in (old[:-1] + "0", old[:-1] + "l", "Qm" + "1" * 44, old[:-1]):
        with pytest.raises(DefinitionError):
            parse_source(text)
    url = f"https://ipfs.io/ipfs/{old}"
    assert parse_source(url) == {"url": url}  # as it always was: job ids stay
