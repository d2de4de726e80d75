"""Errors: their fields, the sentence made of them, and that they survive another process."""

from __future__ import annotations

import pickle

import pytest
from tblib import pickling_support

from lundprobe_zarr import errors
from lundprobe_zarr.errors import Command, DamagedStoreError, LundProbeError, sentence

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LundProbeError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_and_sentence_survive_pickling(kind: type[LundProbeError]) -> None:
    error = kind(
        "3 bytes",
        where="a/b",
        part="chunk 0",
        patient="newAcq_0",
        expected="4",
        remedy="write it anew",
        command=Command("finalise", ("--rebuild",), "my data"),
    )
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == (
        "a/b: chunk 0: 3 bytes; expected 4; write it anew: "
        "`lundprobe-zarr finalise 'my data' --rebuild`"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_they_survive_with_their_traceback(kind: type[LundProbeError]) -> None:
    """As dask sends them, once tblib is installed in the process."""
    pickling_support.install()
    try:
        raise kind("3 bytes", where="a/b", expected="4")
    except LundProbeError as error:
        again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "a/b: 3 bytes; expected 4"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "odd"),
        ({"where": "x"}, "x: odd"),
        ({"expected": "even"}, "odd; expected even"),
        ({"remedy": "add one"}, "odd; add one"),
        ({"command": Command("info")}, "odd; run `lundprobe-zarr info DATASET`"),
        (
            {"remedy": "see {command}, or add one", "command": Command("info", dataset="d")},
            "odd; see `lundprobe-zarr info d`, or add one",
        ),
        ({"command": Command("repair")}, "odd; run `lundprobe-zarr repair SOURCE DATASET`"),
    ],
)
def test_sentence_of_the_fields_there_are(fields: dict[str, object], text: str) -> None:
    assert str(LundProbeError("odd", **fields)) == text


def test_lists_may_leave_out_place_and_advice() -> None:
    error = DamagedStoreError("odd", where="a", part="p", expected="even", remedy="add one")
    assert sentence(error, place=False, advice=False) == "p: odd; expected even"
    assert sentence(error, place=False) == "p: odd; expected even; add one"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_the_built_in_that_fits_too(kind: type[LundProbeError]) -> None:
    assert kind is LundProbeError or len(set(kind.__mro__) - set(LundProbeError.__mro__)) > 1
