"""The Hugging Face Hub's API, as far as its unmodified clients ask for it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.answers import json_answer
from lundprobe_zarr.service.core import caller_of


def routes() -> list[BaseRoute]:
    """Return the routes of the Hub's API."""
    return [
        Route("/api/whoami-v2", _whoami),
        Route("/api/agent-harnesses", _harnesses),
    ]


async def _whoami(request: Request) -> Response:
    """Say who the token belongs to."""
    caller = caller_of(request)
    return json_answer(
        request,
        {
            "type": "user",
            "id": caller.name,
            "name": caller.name,
            "fullname": caller.name,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"role": "read"}},
        },
    )


async def _harnesses(request: Request) -> Response:
    """Tell clients of the Hub that there is nothing of this kind; open to all."""
    return json_answer(request, {"standardEnvVars": [], "harnesses": {}})
