"""Ways to spoil bytes, JSON and text, and values that nobody expects."""

from __future__ import annotations

import copy
import random
from typing import Any

#: Planted in the free text of every source file: no message may repeat it.
NAME = "Doe^Jane 19480229-2385"
#: Numbers on the edges of what fits into something.
NUMBERS: tuple[float, ...] = (
    *(0, -1, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1_000_000),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
)
#: Texts on the edges: ways out of a folder, control codes, Unicode that looks like something else.
TEXTS: tuple[str, ...] = (
    *("", " ", "\0", "a\0b", "\n", "\x1b[2J\x1b]0;x\a", "\u202egnp.exe", "é" * 300, "\ud800", "𝟙"),
    *("..", "../..", "../../etc/passwd", "/etc/passwd", "\\..\\..\\x", "%2e%2e/%2e%2e/x", "~/x"),
    *("s3://bucket/x", "file:///etc/passwd", "https://h/x?sig=1", "x#y", "x?y", "C:\\x", "a:b"),
    *("newAcq_0000000000000000", "oldAcq_ffffffffffffffff", "NaN", "1e999", "-", "null", "true"),
    *("'", '"', "'; DROP TABLE patients; --", "{{ CATALOG_DIR }}", "{0}", "%s", "__import__('os')"),
    *("!!python/object/apply:os.system [x]", "numcodecs.pickle", "pickle", "|O", "object"),
    NAME,
)


def changed_bytes(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """`data` with up to `most` changes: bits, bytes, pieces taken out, doubled, put in, cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 4, 8, 64, 1024))]
        elif kind == 3:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 16))))
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 64, 512))]
        elif rng.random() < 0.5:
            del out[at:]
        else:
            out[at : at + 8] = rng.choice((b"\0" * 8, b"\xff" * 8, b"\x7f" * 8, b"\r\n\r\n;;;;"))
    return bytes(out)


def odd_value(rng: random.Random, depth: int = 2) -> Any:
    """A value of any type that JSON has, and not what is expected."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False))
    if depth == 0:
        return []
    if kind == 6:
        return [odd_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {rng.choice(TEXTS): odd_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def changed_json(rng: random.Random, value: Any, most: int = 3) -> Any:
    """A copy of a JSON value with up to `most` of its members replaced, renamed or taken out."""
    whole = {"": copy.deepcopy(value)}
    for _ in range(rng.randint(1, most)):
        holder, key = _somewhere(rng, whole)
        kind = rng.randrange(8)
        if kind == 0 and holder is not whole:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict) and holder is not whole:
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), odd_value(rng))
        elif kind == 3 and isinstance(holder[key], (int, float)):
            holder[key] = rng.choice(NUMBERS)
        elif kind == 4:  # another member's value, of a kind that is right somewhere
            other, name = _somewhere(rng, whole)
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = odd_value(rng)
    return whole[""]


def _somewhere(rng: random.Random, whole: dict[str, Any]) -> tuple[Any, Any]:
    """A member of a JSON value, and what holds it: deep ones as likely as shallow ones."""
    holder: Any = whole
    key: Any = ""
    while True:
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.12:
            return holder, key
        holder, key = (
            inner,
            rng.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner))),
        )
