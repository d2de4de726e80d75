"""What the operator sees: `/metrics` for Prometheus, and `/status` for a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Iterable, Iterator, Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.core import Service, caller_of, service_of
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.metrics import CONTENT_TYPE, Metrics
from lundprobe_zarr.vocabulary.text import size
from lundprobe_zarr.vocabulary.version import package_version

STATUS = "/status"
#: Seconds after a caller's last request for which they count as active.
_ACTIVE_SECONDS = 300
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "th,td{text-align:left;padding:.15rem 1.5rem .15rem 0;border-bottom:1px solid #ddd}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}th,td{border-color:#333}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"


def routes() -> list[BaseRoute]:
    """Return the routes for operators."""
    return [Route("/metrics", _metrics), Route(STATUS, _status)]


def _require_operator(request: Request) -> Service:
    """Return the service. Raises `HttpError` for a caller without the operator's grant."""
    caller = caller_of(request)
    if not caller.is_operator:
        raise HttpError(
            403 if caller.is_known else 401,
            f"{request.url.path} is for operators of this service. A token for it: "
            "`lundprobe-zarr token add NAME --operator --access FILE`.",
        )
    return service_of(request)


async def _metrics(request: Request) -> Response:
    """Answer with the figures in Prometheus' text format."""
    service = _require_operator(request)
    text = await run_in_threadpool(service.metrics.text)
    return Response(text, headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE)


async def _status(request: Request) -> Response:
    """Answer with a page of the same figures."""
    service = _require_operator(request)
    figures = await run_in_threadpool(_Figures, service.metrics)
    page = "".join(_page(service, figures))
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": _POLICY}
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


class _Figures:
    """Figures of all worker processes, for the page."""

    def __init__(self, metrics: Metrics) -> None:
        self._values: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in metrics.families():
            for sample in family.samples:
                self._values.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over all samples of a name with these labels."""
        return sum(self.each(name, next(iter(labels), ""), **labels).values())

    def each(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """Return the sums over the samples of a name with these labels, by another label."""
        found: dict[str, float] = {}
        for given, value in self._values.get(name, ()):
            if all(given.get(key) == value for key, value in labels.items()):
                key = given.get(by, "")
                found[key] = found.get(key, 0.0) + value
        return found


def _page(service: Service, figures: _Figures) -> Iterator[str]:
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lundprobe-zarr</title>'
        f"<style>{_STYLE}</style></head><body><h1>lundprobe-zarr {html.escape(package_version())}"
        f"</h1><p>{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC; figures since the "
        f"service started. Requests running now: "
        f"{figures.total('lundprobe_running_requests'):.0f}.</p>"
    )
    yield _table(
        "Datasets",
        ("dataset", "revision", "files", "requests", "sent"),
        _datasets(service, figures),
    )
    statuses = figures.each("lundprobe_requests_total", "status")
    rows = [(code, f"{count:.0f}") for code, count in sorted(statuses.items())]
    yield _table("Answers by status", ("status", "requests"), rows)
    yield _table("Callers", ("caller", "requests", "sent", "last request"), _callers(figures))
    yield "</body></html>"


def _datasets(service: Service, figures: _Figures) -> Iterator[Sequence[str]]:
    for name, one in service.published.items():
        now = one.revision
        requests = figures.total("lundprobe_requests_total", dataset=name)
        sent = figures.total("lundprobe_sent_bytes_total", dataset=name)
        yield name, now.sha, str(len(now.index.files)), f"{requests:.0f}", size(sent)


def _callers(figures: _Figures) -> Iterator[Sequence[str]]:
    """Return a row a caller, the last one to come first."""
    requests = figures.each("lundprobe_caller_requests_total", "caller")
    sent = figures.each("lundprobe_caller_sent_bytes_total", "caller")
    last = figures.each("lundprobe_caller_last_request_seconds", "caller")
    for name in sorted(requests, key=lambda n: -last.get(n, 0.0)):
        ago = time.time() - last.get(name, 0.0)
        when = "active" if ago < _ACTIVE_SECONDS else f"{ago / 3600:.1f} h ago"
        yield name, f"{requests[name]:.0f}", size(sent.get(name, 0.0)), when


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<h2>{html.escape(title)}</h2><table>{row(columns, 'th')}{body}</table>"
