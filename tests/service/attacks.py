"""Hostile requests, seeded: paths, ranges, headers, JSON, SQL and tokens."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from urllib.parse import quote

#: What a file system, a proxy or a parser may take for something else.
_PIECES = (
    "..", "../", "..\\", "%2e%2e", "%2e%2e%2f", "%252e%252e%252f", "..%c0%af", "..%00/", "./", "//",
    "\\", "%5c", "%2f", "%00", "%0d%0aSet-Cookie:x=1", "%0a", ";", ";x=1", "?", "#", "~", "~root",
    "$HOME", "{}", "*", "%", "%zz", "%ff%fe", "é", "%E2%80%AE", ".conversion", ".git", ".env",
    "etc/passwd", "proc/self/environ", "C:\\Windows", "con", "nul", "file:///etc/passwd",
    "http://127.0.0.1:1/", "\t", "%09", "%20", "a" * 300,
    "%2e" * 50,
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x")
_RANGES = (
    "bytes=0-", "bytes=-1", "bytes=0-0", "bytes=1-0", "bytes=-0", "bytes=9999999999999999999-",
    "bytes=0-99999999999999999999", "bytes=-99999999999999999999", "bytes=0-1,2-3", "bytes=a-b",
    "bytes=", "bytes", "octets=0-1", "bytes=0x10-0x20", "bytes= 0 - 5", "bytes=--5",
    "bytes=0-1" + ",0-1" * 500, "bytes=１-２", "bytes=0-\x00",
)  # fmt: skip
_SQL = (
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "COPY patients TO '/x'",
    "ATTACH '/tmp/x.db'", "INSTALL httpfs", "LOAD httpfs", "PRAGMA database_list", "SET threads=1",
    "SELECT getenv('HOME')", "SELECT * FROM duckdb_settings()", "SELECT current_setting('x')",
    "SELECT * FROM glob('/*')", "SELECT * FROM read_text('/proc/self/environ')", "DROP TABLE x",
    "SELECT 1; SELECT 2", "WITH x AS (DELETE FROM patients) SELECT 1", "SELECT * FROM sqlite_scan",
    "SELECT '" + "x" * 5000 + "'", "SELECT " + "(" * 300 + "1" + ")" * 300, "SELECT \x00", "'",
    "--",
    "EXPORT DATABASE '/tmp/x'", "CALL pragma_version()", "SELECT * FROM information_schema.tables",
    "SELECT * FROM patients WHERE patient_id LIKE '%", "SELECT ?", "SELECT $1", "VACUUM", "",
    "SELECT * FROM read_parquet('../../x')", "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT 1/0", "SELECT 10**400", "SELECT 'a'::INT", "SELECT * FROM patients LIMIT 1e300",
)  # fmt: skip
_WORDS = ("bearer", "Bearer", "Basic", "Digest", "Negotiate", "", "token", "BEARER")


@dataclass(frozen=True)
class Attack:
    """One request: method, raw target, headers and body."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    token: str | None = field(default=None)

    def encode(self, host: bytes) -> bytes:
        """Return the request's bytes."""
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1", b"Host: " + host]
        if self.token is not None:
            lines.append(b"Authorization: Bearer " + self.token.encode())
        lines += [name + b": " + value for name, value in self.headers]
        lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


def attacks(
    seed: int, count: int, names: Sequence[str], paths: Sequence[str], tokens: Sequence[str | None]
) -> Iterator[Attack]:
    """Yield requests: about datasets `names`, files `paths`, made with one of `tokens` each."""
    random = Random(seed)
    for _ in range(count):
        token = random.choice(tokens)
        yield random.choice((_path, _path, _content, _content, _query, _post))(
            random, names, paths, token
        )


def _target(text: str) -> bytes:
    """Return a text as the target of a request line: no spaces or controls, else as it is."""
    return quote(text, safe=string.punctuation).encode() or b"/"


def _mutated(random: Random, text: str) -> str:
    for _ in range(random.randrange(4)):
        place = random.randrange(len(text) + 1)
        cut = place + random.choice((0, 0, 1, 3))
        text = text[:place] + random.choice(_PIECES) + text[cut:]
    return text


def _headers(random: Random) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    if random.random() < 0.5:
        found.append((b"Range", random.choice(_RANGES).encode("utf-8")))
    if random.random() < 0.1:
        value = random.choice(_WORDS) + " " + "".join(random.choices(string.printable[:94], k=40))
        found.append((b"Authorization", value.encode()))
    if random.random() < 0.2:
        name = random.choice(
            ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Email",
             "X-Auth-Request-Email", "X-Forwarded-User", "X-Original-URL", "X-Rewrite-URL",
             "Cookie",
             "Origin", "Referer", "If-None-Match", "If-Match", "If-Range", "Accept-Encoding",
             "Accept",
             "Content-Type", "X-HTTP-Method-Override", "Expect", "Upgrade", "Transfer-Encoding")
        )  # fmt: skip
        value = random.choice(
            ("127.0.0.1", "*", '"x"', "W/\"x\"", "gzip, br, zstd;q=0", "admin@example.org",
             "/etc/passwd",
             "text/html", "application/json", "\u00ff" * 50, "a" * 5000, "null", "h2c")
        )  # fmt: skip
        if name not in ("Transfer-Encoding", "Expect", "Upgrade"):
            found.append((name.encode(), value.encode("latin-1", "replace")))
    return tuple(found)


def _path(random: Random, names: Sequence[str], paths: Sequence[str], token: str | None) -> Attack:
    name, path = random.choice(names), random.choice(paths)
    base = random.choice(
        (f"/api/datasets/{name}", f"/api/datasets/{name}/tree/main/{path}", "/api/datasets",
         f"/api/datasets/{name}/revision/main", f"/api/datasets/{name}/refs", "/metrics", "/status",
         f"/api/datasets/{name}/commits/main", f"/api/datasets/{name}/auth-check", "/", "/docs",
         f"/{name}/resolve/main/{path}", "/api/openapi.json", "/api/whoami-v2", f"/datasets/{name}")
    )  # fmt: skip
    return Attack(
        random.choice(_METHODS[:3] if random.random() < 0.8 else _METHODS),
        _target(_mutated(random, base)), _headers(random), b"", token,
    )  # fmt: skip


def _content(
    random: Random, names: Sequence[str], paths: Sequence[str], token: str | None
) -> Attack:
    revision = random.choice(("main",) * 8 + ("0" * 40, "refs%2Fpr%2F1", "..", "%2e%2e", ""))
    path = _mutated(random, random.choice(paths))
    target = f"/datasets/{random.choice(names)}/resolve/{revision}/{path}"
    if random.random() < 0.2:
        target = _mutated(random, target)
    method = random.choice(("GET", "GET", "GET", "HEAD", "POST"))
    return Attack(method, _target(target), _headers(random), b"", token)


def _query(random: Random, names: Sequence[str], paths: Sequence[str], token: str | None) -> Attack:
    del paths
    where = random.choice(
        ("/is-valid", "/splits", "/info", "/size", "/parquet", "/first-rows", "/rows", "/filter",
         "/search", "/statistics", "/croissant")
    )  # fmt: skip
    values = (
        "patients", "structures", "base", "extended", "train", "0", "-1", "1e9", "9" * 17,
        "x", "", "a" * 3000, "%00", "patient_id = 'x' OR 1=1", "1; DROP TABLE patients", "é", "NaN",
        *_SQL[:8],
    )  # fmt: skip
    fields = ("config", "split", "offset", "length", "where", "query", "orderby", "dataset", "x")
    parts = [f"dataset={quote(random.choice(names))}"] if random.random() < 0.8 else []
    parts += [
        f"{random.choice(fields)}={quote(random.choice(values))}"
        for _ in range(random.randrange(6))
    ]
    return Attack("GET", _target(f"{where}?{'&'.join(parts)}"), _headers(random), b"", token)


def _post(random: Random, names: Sequence[str], paths: Sequence[str], token: str | None) -> Attack:
    what = random.choice(("sql", "sql", "cohort", "paths-info/main"))
    kind = random.choice(
        ("application/json", "application/x-www-form-urlencoded", "text/plain", "")
    )
    text = random.choice(_SQL)
    document: object = random.choice(
        (
            {"sql": text},
            {"where": text},
            {"sql": text, "limit": random.choice((-1, 0, 1e9, "x"))},
            {"sql": 5}, {"where": None}, [text], text, 1, None, {"sql": {"a": text}},
            {"paths": [random.choice(paths)], "expand": True}, {"sql": text, "format": "../x"},
        )
    )  # fmt: skip
    body = random.choice(
        (
            json.dumps(document).encode(),
            json.dumps(document).encode()[:-1],
            b"[" * 5000,
            b"\xff\xfe\x00",
            b'{"sql": "\\ud800"}',
            b"paths=" + quote(random.choice(paths)).encode() + b"&expand=True",
            b"a" * 100_000,
            b"",
        )
    )
    target = _target(f"/api/datasets/{random.choice(names)}/{what}")
    return Attack(
        "POST", target, ((b"Content-Type", kind.encode()), *_headers(random)), body, token
    )
