"""The OpenAPI description: every route is in it, and the server does as it says."""

from __future__ import annotations

import re

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from lundprobe_zarr.service.access.callers import Caller
from lundprobe_zarr.service.app import application
from lundprobe_zarr.service.openapi import description


@pytest.fixture(scope="module")
def document(served):
    with served.client as client:
        answer = client.get("/api/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_it_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"


def test_every_route_is_in_it(served, document):
    routes = application(served.app._service)._inner.routes
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes if route.include_in_schema}
    content = "/datasets/{owner}/{name}/resolve/{revision}/{path}"
    assert set(document["paths"]) == paths | {content}
    operations = [o for path in document["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for operation in operations)


def test_it_names_only_the_datasets_of_the_caller(served):
    service = served.app._service
    nobody = description([], service, Caller("a", datasets=frozenset()))
    assert served.name not in str(nobody)
    everyone = description([], service, Caller("a"))
    assert "standard" in str(everyone)


def test_it_needs_a_token(served):
    assert httpx.get(f"{served.url}/api/openapi.json").status_code == 401


#: What the server must keep to, whatever it is asked.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.ignored_auth,
]


@pytest.fixture(scope="module")
def described(served, document):
    """The description as schemathesis reads it, by the mode in which it makes requests.

    Every request is sent with the token. So where requests are made that it rules out, it says
    nothing of tokens: else one without a token would be made, which then has one.
    """
    bare = {key: value for key, value in document.items() if key != "security"}
    return {
        GenerationMode.POSITIVE: schemathesis.openapi.from_dict(document),
        GenerationMode.NEGATIVE: schemathesis.openapi.from_dict(bare),
    }


AS_DESCRIBED = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


def every_operation_keeps_to_its_description(described, served, examples):
    """Ask every operation as described, and in ways that the description rules out."""
    count = 0
    for mode, schema in described.items():
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(AS_DESCRIBED, max_examples=examples)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                answer = case.call(base_url=served.url, headers=served.headers)
                if answer.status_code != 431:  # a head that is too large is not even parsed
                    case.validate_response(answer, checks=CHECKS, headers=served.headers)

            try:
                ask()
            except Unsatisfiable:  # nothing is ruled out: no parameters
                continue
            count += 1
    return count


def test_the_server_does_as_it_says(described, served):
    assert every_operation_keeps_to_its_description(described, served, 4) > 15


@pytest.mark.slow
def test_the_server_does_as_it_says_at_length(described, served):
    assert every_operation_keeps_to_its_description(described, served, 200) > 15
