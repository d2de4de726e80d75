"""Sections of the site that are made when it is built: names, commands, errors, HTTP API."""

from __future__ import annotations

import html
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lundprobe_zarr as lp  # noqa: E402
from lundprobe_zarr import errors  # noqa: E402
from lundprobe_zarr.cli.app import app  # noqa: E402

#: Titles of the Python reference, by the room that a name is defined in.
ROOMS = {
    "cohort": "Cohorts, patients, splits",
    "dataset": "Datasets",
    "labelled": "Labelled data and measures",
    "stream": "Training",
    "patches": "Patches",
    "huggingface": "Hugging Face",
    "quality": "Quality",
    "exchange": "Other formats",
    "geometry": "Geometry",
    "phantom": "Phantom",
    "errors": "Errors",
}
#: What users meet without importing it: the accessors `.lp` of xarray's objects.
ACCESSORS = (
    "lundprobe_zarr.labelled.accessor.DataArrayAccessor",
    "lundprobe_zarr.labelled.accessor.DatasetAccessor",
)


def names_by_room() -> dict[str, list[str]]:
    """Every public name, under the room that it is defined in."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in lp.__all__:
        module = lp._LAZY.get(name) or vars(lp)[name].__module__  # imports nothing
        found.setdefault(module.split(".")[1], []).append(name)
    return {room: names for room, names in found.items() if names}


def python() -> str:
    """The directives of mkdocstrings for every public name and both accessors."""
    parts = []
    for room, names in names_by_room().items():
        parts.append(f"## {ROOMS.get(room, room.capitalize())}\n")
        parts += [f"::: lundprobe_zarr.{name}\n" for name in names]
    parts.append("## The accessor `.lp`\n")
    parts += [f"::: {path}\n" for path in ACCESSORS]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of `--help`."""
    group: Any = typer.main.get_command(app)
    yield "", group
    yield from _below("", group.commands)


def _below(before: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, command in found.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield f"{before}{name}", command
        else:
            yield from _below(f"{before}{name} ", inner)


def command_line() -> str:
    """The help of every command, as the terminal shows it."""
    parts = []
    for name, command in commands():
        full = f"lundprobe-zarr {name}".rstrip()
        context = command.make_context(full, [], resilient_parsing=True)
        context.max_content_width = context.terminal_width = 88
        title = f"## {name}" if name else "## Options of all commands"
        parts.append(f"{title}\n\n```console\n$ {full} --help\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def error_classes() -> str:
    """Every class of error, with what it is and which built-ins it also is."""
    rows = ["| class | also a | what happened |", "| --- | --- | --- |"]
    found = [c for c in vars(errors).values() if inspect.isclass(c)]
    for kind in (c for c in found if issubclass(c, errors.LundProbeError)):
        also = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{kind.__name__}` | {also} | {summary} |")
    return "\n".join(rows) + "\n"


def http_api() -> str:
    """Every operation of the service, from its own OpenAPI document."""
    document = openapi()
    parts = ["## Errors\n", "| status | |", "| --- | --- |"]
    parts += [f"| {status} | {text} |" for status, text in _statuses(document).items()]
    for tag in document["tags"]:
        parts.append(f"\n## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        for path, there in document["paths"].items():
            for method, operation in there.items():
                if tag["name"] in operation["tags"] and not (method == "head" and "get" in there):
                    parts.append(_operation(method, path, operation))
    return "\n".join(parts)


def _statuses(document: Mapping[str, Any]) -> dict[str, str]:
    """Every status of an error, with the description that it has most often."""
    said: dict[str, list[str]] = {}
    for there in document["paths"].values():
        for operation in there.values():
            for status, answer in operation["responses"].items():
                if status[0] in "45" and status.isdigit():
                    said.setdefault(status, []).append(_cell(answer["description"]))
    return {status: max(texts, key=texts.count) for status, texts in sorted(said.items())}


def openapi() -> dict[str, Any]:
    """The OpenAPI document of a service that serves a tiny phantom."""
    from starlette.testclient import TestClient

    from lundprobe_zarr.service.access.callers import new_token, token_sha256
    from lundprobe_zarr.service.app import make_app
    from lundprobe_zarr.service.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        source, dataset = f"{folder}/source", f"{folder}/dataset"
        for words in (["phantom", source, "--extended", "0"], ["convert", source, dataset]):
            command = [sys.executable, "-m", "lundprobe_zarr", "--quiet", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        token = new_token()
        settings = Settings(
            datasets={"OWNER/NAME": dataset},
            state=f"{folder}/state",
            public_url="http://127.0.0.1",
            token_sha256=token_sha256(token),
        )
        with TestClient(make_app(settings), base_url="http://127.0.0.1") as client:
            answer = client.get("/api/openapi.json", headers={"Authorization": f"Bearer {token}"})
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
    return found


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"### `{method.upper()} {path}`\n", f"{operation['summary']}\n"]
    if parameters := operation["parameters"]:
        lines += ["| parameter | in | type | |", "| --- | --- | --- | --- |"]
        lines += [_parameter(p) for p in parameters]
        lines.append("")
    if body := operation.get("requestBody"):
        for kind, content in body["content"].items():
            lines += [f"Body, `{kind}`:\n", *_fields(content.get("schema", {})), ""]
    answers = operation["responses"]
    lines += ["| status | answer | |", "| --- | --- | --- |"]
    for status in (s for s in answers if s[0] in "123"):
        kinds = ", ".join(f"`{kind}`" for kind in answers[status].get("content", {}))
        lines.append(f"| {status} | {kinds} | {_cell(answers[status].get('description', ''))} |")
    failed = ", ".join(s for s in answers if s[0] in "45" and s.isdigit())
    return "\n".join(lines) + (f"\n\nErrors: {failed}.\n" if failed else "\n")


def _parameter(parameter: Mapping[str, Any]) -> str:
    needed = "" if parameter.get("required") else " (optional)"
    kind = _type(parameter.get("schema", {}))
    about = _cell(parameter.get("description", ""))
    return f"| `{parameter['name']}`{needed} | {parameter['in']} | {kind} | {about} |"


def _fields(schema: Mapping[str, Any]) -> Iterable[str]:
    properties = schema.get("properties")
    if not properties:
        return [f"```json\n{json.dumps(schema, indent=1)}\n```"]
    needed = schema.get("required", ())
    rows = ["| field | type | |", "| --- | --- | --- |"]
    for name, field in properties.items():
        optional = "" if name in needed else " (optional)"
        rows.append(f"| `{name}`{optional} | {_type(field)} | {_cell(_about(field))} |")
    return rows


def _about(field: Mapping[str, Any]) -> str:
    return str(field.get("description", ""))


def _type(schema: Mapping[str, Any]) -> str:
    if choices := schema.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds = schema.get("type", "any")
    text = kinds if isinstance(kinds, str) else " or ".join(kinds)
    limits = [f"{word} {schema[key]}" for key, word in _LIMITS.items() if key in schema]
    return _cell(", ".join([text, *limits]))


_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "maxLength": "length at most",
    "default": "default",
}


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


SECTIONS: dict[str, Callable[[], str]] = {
    "python": python,
    "command-line": command_line,
    "errors": error_classes,
    "http-api": http_api,
}
