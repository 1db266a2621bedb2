"""Errors of the API: what is wrong, where, why and what to try, on every path that it describes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.support import busy
from tracer.web import Application, Request

APP = Application(busy.current())


def asked(path: str, query: str = "") -> tuple[int, Any]:
    answer = APP(Request("GET", f"/api/v1{path}", query))
    assert answer.kind == "application/json"
    return answer.status, json.loads(answer.body)


DESCRIBED = asked("/openapi.json")[1]
PATHS = list(DESCRIBED["paths"])
ERROR = {"$ref": "#/components/schemas/Error", "components": DESCRIBED["components"]}


def target(path: str) -> str:
    return path.replace("{id}", busy.violations()[0].first.id)


def refused(path: str, query: str) -> dict[str, str]:
    status, error = asked(target(path), query)
    assert status == 400, (path, query, error)
    jsonschema.Draft202012Validator(ERROR).validate(error)
    assert error["where"] == f"/api/v1{target(path)}?{query}"
    assert all(error.values())
    found: dict[str, str] = error
    return found


@pytest.mark.parametrize("path", PATHS)
def test_every_path_refuses_what_it_has_no_parameter_for(path: str) -> None:
    assert asked(target(path))[0] == 200
    for query in ("nothing=1", "nothing=", "nothing"):
        error = refused(path, query)
        assert error["error"] == "no such parameter: 'nothing'"
        assert "leave 'nothing' out" in error["hint"]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_refuses_a_query_that_is_not_well_formed(path: str) -> None:
    for query, why in (
        ("q=%zz", "two hexadecimal digits follow a %"),
        ("q=%ff%fe", "not UTF-8"),
        ("&".join(f"a{n}=1" for n in range(100)), "more than 20 parameters"),
    ):
        error = refused(path, query)
        assert error["error"] == "the query is not well formed"
        assert why in error["why"]


@pytest.mark.parametrize("path", PATHS)
def test_description_has_the_errors_of_every_path(path: str) -> None:
    responses = DESCRIBED["paths"][path]["get"]["responses"]
    assert {"200", "400", "503"} <= set(responses)
    assert responses["400"] == {"$ref": "#/components/responses/BadQuery"}


@pytest.mark.parametrize("path", PATHS)
def test_every_parameter_refuses_values_of_another_kind_and_a_second_one(path: str) -> None:
    for one in DESCRIBED["paths"][path]["get"].get("parameters", ()):
        if one["in"] != "query":
            continue
        schema, name = one["schema"], one["name"]
        wrong, right = (
            ("odd", schema["enum"][0])
            if "enum" in schema
            else ("nan", "1")
            if schema["type"] == "number"
            else ("x" * (schema["maxLength"] + 1), "x" * schema["maxLength"])
        )
        assert f"the parameter {name!r} cannot be" in refused(path, f"{name}={wrong}")["error"]
        assert "twice" in refused(path, f"{name}={right}&{name}={right}")["error"]
        assert asked(target(path), f"{name}={right}")[0] == 200
        assert asked(target(path), f"{name}=") == asked(target(path))


def test_the_error_names_the_parameters_that_there_are_and_a_like_one() -> None:
    error = refused("/rates", "sinc=5")
    assert error["why"] == "this path has the parameter since"
    assert error["hint"] == "since in its place"
    assert "q, function, ruled" in refused("/protocols", "page=2")["why"]
    assert "violated, suspect" in refused("/protocols", "ruled=bad")["why"]
    assert refused("/lost", "x=1")["why"] == "this path has no parameters"


def test_other_errors_have_the_same_members() -> None:
    for path in ("/nothing", "/violations/nothing", "/violations/{id}", "/hooks/x"):
        status, error = asked(path)
        assert status == 404
        jsonschema.Draft202012Validator(ERROR).validate(error)
