"""Rows of the tables that come from voxels: structures, dvh, slices, foreground, intensity.

The converter measures each mask while it is in memory; `finalise --rebuild` measures the same
volumes read back from the stores. Volumes are (z, y, x), affines voxel (i, j, k) -> mm RAS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import (
    FloatArray,
    axis_coordinates,
    index_to_lps,
    voxel_volume_cc,
)
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.measures.coverage import Covered, covered
from lundprobe_zarr.measures.dose_volume import ascending, dose_columns, doses
from lundprobe_zarr.measures.histogram import binned
from lundprobe_zarr.measures.intensity import Inside, intensity
from lundprobe_zarr.measures.masks import Outline, margin_mm, mask_sha256, points_inside
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.schema.tables import FOREGROUND_SAMPLE, INTENSITY
from lundprobe_zarr.vocabulary.files import SourceFile, parse_path
from lundprobe_zarr.vocabulary.names import MODALITY_UNITS, STRUCTURES, protocol_of

Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]
Row = dict[str, Any]
#: The expanded target, and the target that it adds a margin to.
_EXPANDED, _TARGET = "PTVT_427", "CTVT_427"
#: Structures that must contain another one: outer -> inner.
_HELD_BY = {_EXPANDED: _TARGET, "BODY": _EXPANDED}
#: Structures that the planning dose grid must cover completely.
COVERED_TARGETS = (_TARGET, _EXPANDED)
#: The structure inside which image values are measured.
BODY = "BODY"


@dataclass(frozen=True)
class Body:
    """The clinical BODY of a grid, inside which images are measured; or why there is none."""

    inside: Inside | None
    reason: str | None = None

    @classmethod
    def of(cls, mask: Mask | None, grid: str) -> Body:
        """Keep a mask (z, y, x); None if the patient has none on the grid."""
        if mask is None:
            return cls(None, f"no clinical BODY on the {grid} grid")
        inside = Inside.of(mask)
        return cls(inside, "BODY has no voxel" if inside is None else None)


class Measurements:
    """Collects the measured rows of one patient, mask by mask.

    `listed` are the masks that the authors list with several components: see `is_listed`.
    `fiducials` are positions (n, 3), x y z in mm, LPS; None without any.
    """

    def __init__(self, patient_id: str, part: str, listed: Collection[str] | None = None) -> None:
        self._who = {"patient_id": patient_id, "part": part}
        self._listed = listed
        self.fiducials: FloatArray | None = None
        self._outlines: dict[tuple[str, str], tuple[Outline, Row]] = {}
        self._protocol = {"protocol": protocol_of(patient_id)}
        self._slice_counts: dict[str, npt.NDArray[np.int64]] = {}
        self._structures: list[Row] = []
        self._dvh: list[Row] = []
        self._foreground: list[Row] = []
        self._intensity: list[Row] = []

    def add(
        self,
        record: SourceFile,
        mask: Mask,
        box: Box | None,
        affine: FloatArray,
        dose: npt.NDArray[Any] | None,
        planned: Grid | None,
    ) -> None:
        """Measure one mask, whose `bounding_box` is `box`.

        `dose` is that of its grid in Gy, `planned` the planning dose grid; None if the patient has
        none. A PTV is compared with the clinical CTV that was measured before, BODY with the PTV.

        Fiducial masks are not structures and are skipped.
        """
        source = SEGMENTATION_SOURCES.get(f"{record.group}/{record.variable}")
        if source is None:
            return
        structure = str(record.labels["structure"])
        which = (
            self._who
            | self._protocol
            | {"grid": record.grid, "source": source, "structure": structure}
            | {name: record.labels.get(name) for name in ("fold", "step", "observer")}
        )
        shape = shape_columns(mask, box, affine)
        statistics, histogram = dose_measures(mask, box, affine, dose, planned)
        row = (
            which
            | shape
            | {"mask_sha256": mask_sha256(mask, box)}
            | {"listed_by_authors": is_listed(record, self._listed), "outside_voxels": None}
            | {"fiducials_inside": self._fiducials_inside(record, mask, affine)}
            | self._margin(record, mask, box, affine)
            | statistics
        )
        self._structures.append(row)
        self._dvh.append(which | {"volume_cc": shape["volume_cc"]} | histogram)
        if source == "clinical":
            self._hold(row, mask, box)
        if record.group == "mri/clinical":
            self._slice_counts[structure] = slice_counts(mask)
            self._foreground.append(self._foreground_row(structure, mask, box))

    def add_image(self, record: SourceFile, image: npt.NDArray[Any], body: Body) -> None:
        """Measure an image (z, y, x) inside the clinical BODY of its grid, of the same shape."""
        modality = str(record.labels["modality"])
        row: Row = dict.fromkeys(c.name for c in INTENSITY.columns)
        row |= self._who | self._protocol | {"grid": record.grid, "modality": modality}
        row["unit"] = MODALITY_UNITS[modality]
        found = intensity(image, body.inside) if body.inside is not None else None
        if found is None:
            row["reason"] = body.reason or "values inside BODY are inf or NaN"
        else:
            row |= found
        self._intensity.append(row)

    def _margin(self, record: SourceFile, mask: Mask, box: Box | None, affine: FloatArray) -> Row:
        """Columns of a clinical PTV's margin about its CTV, whose outline was kept."""
        found: tuple[float, float] | tuple[None, None] = (None, None)
        is_clinical = record.group in ("mri/clinical", "sct/clinical")
        target = self._outlines.get((record.grid, _TARGET))
        if box is not None and is_clinical and record.labels["structure"] == _EXPANDED and target:
            found = margin_mm(target[0], Outline.of(mask, box), affine)
        return dict(zip(("margin_min_mm", "margin_max_mm"), found, strict=True))

    def _hold(self, row: Row, mask: Mask, box: Box | None) -> None:
        """Complete the row of the structure inside this one; keep the outline of this one."""
        grid, structure = row["grid"], row["structure"]
        kept = self._outlines.pop((grid, _HELD_BY.get(structure, "")), None)
        if kept is not None:
            outline, held = kept
            held["outside_voxels"] = outline.beyond(mask)
        if box is not None and structure in _HELD_BY.values():
            self._outlines[grid, structure] = Outline.of(mask, box), row

    def _fiducials_inside(self, record: SourceFile, mask: Mask, affine: FloatArray) -> int | None:
        is_target = record.group == "mri/clinical" and record.labels["structure"] == _TARGET
        if self.fiducials is None or not is_target:
            return None
        return points_inside(mask, affine, self.fiducials)

    def _foreground_row(self, structure: str, mask: Mask, box: Box | None) -> Row:
        seed = f"{self._who['patient_id']}/{structure}"
        total, indices = foreground_sample(mask, box, seed)
        return self._who | {"structure": structure, "total": total, "indices": indices}

    def components(self) -> dict[str, int]:
        """Most 26-connected components of each clinical structure, over both grids."""
        most: dict[str, int] = {}
        for row in self._structures:
            if row["source"] == "clinical":
                most[row["structure"]] = max(most.get(row["structure"], 0), row["components"])
        return most

    def coverage_findings(self) -> list[str]:
        """Clinical targets partly outside the planning dose grid; see `coverage_findings`."""
        return list(coverage_findings(self._structures))

    def rows(self, shape: tuple[int, int, int], affine: FloatArray) -> dict[str, list[Row]]:
        """All rows by table; `shape` and `affine` are those of the MRI grid."""
        return {
            "structures": self._structures,
            "dvh": self._dvh,
            "slices": self._slice_rows(shape, affine),
            "foreground": self._foreground,
            "intensity": self._intensity,
        }

    def _slice_rows(self, shape: tuple[int, int, int], affine: FloatArray) -> list[Row]:
        z_mm = axis_coordinates(affine, shape).get("z")
        counts = {f"voxels_{s}": self._slice_counts.get(s) for s in STRUCTURES}
        return [
            self._who
            | self._protocol
            | {"z_index": k, "z_mm": None if z_mm is None else float(z_mm[k])}
            | {name: None if c is None else int(c[k]) for name, c in counts.items()}
            for k in range(shape[0])
        ]


def is_listed(record: SourceFile, listed: Collection[str] | None) -> bool | None:
    """Whether the authors list a mask with several components.

    `listed` are paths below the patient's folder, or only the name of a file where the list does
    not give its folder. The result is None if it is not known which mask the list refers to, or
    if there is no list.
    """
    if listed is None:
        return None
    if record in map(parse_path, listed):
        return True
    # The file name of a network's or an observer's mask is enough to determine its folder.
    named = f"mask_{record.labels['structure']}.nii.gz" in listed
    return None if named and record.group.endswith("clinical") else False


def slice_counts(mask: Mask) -> npt.NDArray[np.int64]:
    """Voxels of each slice; NumPy counts slice by slice several times as fast as by axis."""
    return np.array([np.count_nonzero(plane) for plane in mask], np.int64)


def shape_columns(mask: Mask, box: Box | None, affine: FloatArray) -> Row:
    """Size and location of a mask: voxels, volume, bounding box, centroid, components, gaps."""
    voxels = int(np.count_nonzero(mask if box is None else mask[box]))
    columns: Row = {"voxels": voxels, "volume_cc": voxels * voxel_volume_cc(affine)}
    if box is None:
        nothing = dict.fromkeys(("bbox_start", "bbox_stop", "centroid_mm"))
        return columns | nothing | {"components": 0, "empty_slices": 0}
    part = mask[box]
    start = [s.start for s in box]
    return columns | {
        "bbox_start": start,
        "bbox_stop": [s.stop for s in box],
        "centroid_mm": index_to_lps(affine, _mean_index(part) + start).tolist(),
        "components": _components(part),
        "empty_slices": int(np.count_nonzero(~part.any(axis=(1, 2)))),
    }


def _components(part: Mask) -> int:
    """Number of components; a shared face, edge or corner connects, as in the authors' check."""
    if sum(length == 1 for length in part.shape) > 1:  # cc3d 4.1 fails on a row of voxels
        part = np.pad(part, 1)
    return int(cc3d.connected_components(part, connectivity=26, return_N=True)[1])


def _mean_index(part: Mask) -> FloatArray:
    """Mean (z, y, x) index of the voxels, from counts along each axis: exact in integers."""
    columns = np.add.reduce(part.view(np.uint8), axis=0, dtype=np.uint32)  # (y, x): voxels along z
    counts = slice_counts(part), columns.sum(axis=1), columns.sum(axis=0)
    return np.array([float(np.average(np.arange(len(c)), weights=c)) for c in counts])


def dose_measures(
    mask: Mask,
    box: Box | None,
    affine: FloatArray,
    dose: npt.NDArray[Any] | None,
    planned: Grid | None,
) -> tuple[Row, Row]:
    """Columns of the part of a mask that the planning dose grid covers, and of the dose there.

    The first row is for `structures`, the second for `dvh`. Without a planning grid (`planned`) the
    covered part is not known: it is None, and the dose is that of the whole mask. See
    `measures.coverage` for the definition of the covered part, and `measures.dose_volume` for the
    statistics, which are None without `dose` and where nothing is covered.
    """
    share: float | None = None
    values: npt.NDArray[Any] | None = None
    if box is not None:
        inside = Covered(box, mask[box])
        if planned is not None:
            voxels = inside.voxels
            z, y, x = mask.shape
            inside = covered(mask, box, Grid(affine, (z, y, x)), planned)
            share = 100.0 * inside.voxels / voxels
        values = None if dose is None else ascending(doses(dose, inside))
    voxel_cc = voxel_volume_cc(affine)
    return (
        {"dose_covered_pct": share} | dose_columns(values, voxel_cc),
        {"covered_pct": share, "voxel_cc": voxel_cc, "cumulative_cc": binned(values, voxel_cc)},
    )


def coverage_findings(rows: Iterable[Row]) -> Iterable[str]:
    """Clinical targets, from rows of `structures`, that the planning dose grid does not cover."""
    for row in rows:
        share = row["dose_covered_pct"]
        of_target = row["source"] == "clinical" and row["structure"] in COVERED_TARGETS
        if of_target and share is not None and share < 100:
            inside = round(row["voxels"] * share / 100)
            yield (
                f"{row['structure']} ({row['grid']} grid): {inside} of {row['voxels']} voxels "
                "lie in the planning dose grid; its dose statistics are over these"
            )


def foreground_sample(mask: Mask, box: Box | None, seed: str) -> tuple[int, list[list[int]]]:
    """Number of voxels of `mask`, and up to 1,000 of them as (z, y, x), sampled with `seed`."""
    if box is None:
        return 0, []
    part = mask[box]
    ends = np.cumsum(np.count_nonzero(part, axis=(1, 2)))
    total = int(ends[-1])
    ranks = np.arange(total)
    if total > FOREGROUND_SAMPLE:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
        generator = np.random.Generator(np.random.PCG64(number))
        ranks = np.sort(generator.choice(total, FOREGROUND_SAMPLE, replace=False, shuffle=False))
    return total, (_ranked_voxels(part, ends, ranks) + [s.start for s in box]).tolist()


def _ranked_voxels(
    part: Mask, ends: npt.NDArray[Any], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Indices (n, 3) of the voxels of some ranks in C order; lists one slice's voxels at a time.

    `ends` are the voxels up to and including each slice. Listing all voxels of a BODY at once
    would take 200 MB at full size.
    """
    planes = np.searchsorted(ends, ranks, side="right")
    places = np.empty((len(ranks), 3), np.int64)
    for plane in np.unique(planes):
        here = planes == plane
        voxels = np.flatnonzero(part[plane])
        first = int(ends[plane]) - len(voxels)
        y, x = np.unravel_index(voxels[ranks[here] - first], part[plane].shape)
        places[here] = np.stack([np.full_like(y, plane), y, x], axis=1)
    return places


def component_findings(components: Mapping[str, int], listed: tuple[str, ...] | None) -> list[str]:
    """Disagreements of the components found with the authors' list; None without a list."""
    if listed is None:
        return []
    found = [
        f"{s}: {n} connected components, not on the authors' list"
        for s, n in components.items()
        if n > 1 and s not in listed
    ]
    return found + [
        f"{s}: on the authors' list of several connected components, has {components.get(s, 0)}"
        for s in listed
        if components.get(s, 0) <= 1
    ]
