"""Which numbers of a label map are which structure: one way to say it, for arrays and for files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.vocabulary.names import STRUCTURES

Mask = npt.NDArray[np.bool_]
#: `{1: "Rectum"}`, or as nnU-Net's `dataset.json` has it `{"Rectum": 1, "PTVT_427": [1, 2]}`.
Labels = Mapping[int, str] | Mapping[str, int | Sequence[int]]
#: The name in nnU-Net's `labels` of voxels of which nobody knows what they are.
IGNORE = "ignore"
#: Names in nnU-Net's `labels` that are no structures.
NO_STRUCTURES = ("background", IGNORE)


def label_numbers(labels: Labels) -> dict[str, tuple[int, ...]]:
    """Return the numbers of each name.

    Raises `UsageError` for labels of another form, and for a structure with the number 0.
    """
    found: dict[str, tuple[int, ...]] = {}
    if not isinstance(labels, Mapping):
        raise _wrong(labels)
    for key, value in labels.items():
        name: Any
        numbers: Any
        name, numbers = (value, key) if isinstance(key, int) else (key, value)
        some = numbers if isinstance(numbers, list | tuple) else (numbers,)
        is_sound = isinstance(name, str) and some and all(_is_whole(n) for n in some)
        if not is_sound:
            raise _wrong({key: value})
        if 0 in some and name in STRUCTURES:
            raise UsageError(
                f"labels: 0 for {name}",
                expected="a number from 1 on: 0 is the background",
                remedy="count the classes of the map with the background as the first",
            )
        found[name] = (*found.get(name, ()), *(int(n) for n in some))
    return found


def _is_whole(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _wrong(labels: Any) -> UsageError:
    return UsageError(
        f"labels {labels!r}", expected="numbers and structures, e.g. {1: 'Rectum', 2: 'Bladder'}"
    )


def require_known_numbers(values: npt.NDArray[Any], numbers: Mapping[str, Sequence[int]]) -> None:
    """Require that a map holds 0 and numbers of `labels` alone, but not the ignore label.

    Raises `UsageError`. A voxel to ignore is neither structure nor background: to take it for
    background would make a structure smaller than anybody said.
    """
    ignored = [int(n) for n in numbers.get(IGNORE, ()) if n != 0 and (values == n).any()]
    if ignored:
        raise UsageError(
            f"a label map with the ignore label {ignored[0]}",
            expected="a prediction, which says of each voxel what it is",
            remedy="nnU-Net's labelsTr are no predictions: give what was predicted",
        )
    known = {0, *(n for some in numbers.values() for n in some)}
    others = values[~np.isin(values, sorted(known))]
    strange = [int(v) for v in np.unique(others)]
    if strange:
        raise UsageError(
            f"a label map with {', '.join(map(str, strange[:8]))}",
            expected=f"0 (background) and {', '.join(map(str, sorted(known - {0})))}",
            remedy="name every number in labels",
        )


def label_masks(
    values: npt.NDArray[Any], numbers: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Mask]]:
    """Yield the mask of each name: where the map (z, y, x) has one of its numbers."""
    for name, some in numbers.items():
        first, *others = some
        mask = values == first
        for number in others:
            mask |= values == number
        yield name, mask


def structure_numbers(numbers: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the numbers of what is neither background nor to be ignored."""
    return {name: some for name, some in numbers.items() if name not in NO_STRUCTURES}
