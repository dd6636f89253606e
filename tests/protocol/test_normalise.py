"""One wish, one job id: however it is written down."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairio_protocol.apps import validate_app
from pairio_protocol.errors import DefinitionError
from pairio_protocol.normalise import job_id_of, normalise, parse_source

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
