"""The Parquet tables: every column with its type, unit and meaning.

Descriptions and units travel in the Parquet field metadata (`description`, `unit`). Lists of
three are in z, y, x; paths are relative to the dataset (stores) or the source root (files).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from lundprobe_zarr.vocabulary.names import GRIDS, PRESCRIPTION_GY, STRUCTURES

_TRIPLE = pa.list_(pa.float64(), 3)
_SHAPE = pa.list_(pa.int64(), 3)
#: The same with nulls: pyarrow before 26 cannot write and read lists of fixed size with nulls.
_TRIPLE_OR_NONE = pa.list_(pa.float64())
_SHAPE_OR_NONE = pa.list_(pa.int64())


@dataclass(frozen=True)
class Column:
    """One column: Arrow type, meaning, unit ("" without one), and whether it may be null."""

    name: str
    type: pa.DataType
    description: str
    unit: str = ""
    nullable: bool = False

    def field(self) -> pa.Field:
        """Return the Arrow field, with description and unit in its metadata."""
        metadata = {"description": self.description} | ({"unit": self.unit} if self.unit else {})
        return pa.field(self.name, self.type, self.nullable, metadata)


@dataclass(frozen=True)
class Table:
    """One table of a dataset: what a row is, and its columns."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema, column by column."""
        return pa.schema(
            [c.field() for c in self.columns], {"description": f"A row is {self.row}."}
        )

    def from_rows(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Return the Arrow table of `rows`; each must have exactly the table's columns."""
        return pa.Table.from_pylist([dict(r) for r in rows], schema=self.schema)


_WHO = (
    Column("patient_id", pa.string(), "pseudonymous patient identifier"),
    Column("part", pa.string(), "base or extended"),
)
_PROTOCOL = Column("protocol", pa.string(), "acquisition protocol: oldAcq or newAcq")


def _grid_columns(grid: str) -> Iterable[Column]:
    nullable = grid == "dose"  # a patient without dose_original has no planning grid
    shape, triple = (_SHAPE_OR_NONE, _TRIPLE_OR_NONE) if nullable else (_SHAPE, _TRIPLE)
    yield Column(f"{grid}_shape", shape, f"voxels of the {grid} grid (z, y, x)", "1", nullable)
    yield Column(
        f"{grid}_spacing_mm", triple, f"voxel size of the {grid} grid (z, y, x)", "mm", nullable
    )
    yield Column(
        f"{grid}_origin_mm",
        triple,
        f"centre of the {grid} grid's first voxel (z, y, x), LPS",
        "mm",
        nullable,
    )


#: Column with a hash of what a patient's store holds; tables written by early versions lack it.
CONTENT = "content_sha256"

PATIENTS = Table(
    "patients",
    "one patient",
    (
        *_WHO,
        _PROTOCOL,
        Column("store", pa.string(), "path of the patient's Zarr store in the dataset"),
        *(c for grid in GRIDS for c in _grid_columns(grid)),
        *(
            Column(f"missing_{s}", pa.bool_(), f"no clinical {s} mask on the MRI grid")
            for s in STRUCTURES
        ),
        Column(
            "missing_structures", pa.list_(pa.string()), "clinical structures missing (MRI grid)"
        ),
        Column(
            "multi_component_structures",
            pa.list_(pa.string()),
            "clinical structures the authors list with more than one connected component",
        ),
        Column("n_fiducials", pa.int64(), "gold fiducials with a position", "1"),
        Column("dose_min_gy", pa.float64(), "smallest dose on the planning grid", "Gy", True),
        Column("dose_max_gy", pa.float64(), "largest dose on the planning grid", "Gy", True),
        Column(
            "sct_warning_text",
            pa.bool_(),
            "a warning text is burnt into the first 50 rows of the sCT (true for oldAcq)",
        ),
        Column(
            "geometry_matches_csv",
            pa.bool_(),
            "the authors' geometry table agrees with the files; null without a readable row",
            nullable=True,
        ),
        Column("findings", pa.list_(pa.string()), "what was odd about the patient's files"),
        Column("source_bytes", pa.int64(), "size of the patient's converted source files", "byte"),
        Column("store_bytes", pa.int64(), "size of all objects of the patient's store", "byte"),
        Column(
            CONTENT,
            pa.string(),
            "hash of voxels, labels and geometry, the same wherever equal files were converted",
        ),
    ),
)

ARRAYS = Table(
    "arrays",
    "one source file and the slice of the array that it fills",
    (
        *_WHO,
        Column("source_path", pa.string(), "path below the source root"),
        Column("source_bytes", pa.int64(), "size of the file", "byte"),
        Column("source_sha256", pa.string(), "SHA-256 of the file"),
        Column("source_dtype", pa.string(), "voxel type in the file; null for text", nullable=True),
        Column(
            "source_shape", _SHAPE_OR_NONE, "voxels in the file (z, y, x); null for text", "1", True
        ),
        Column("group", pa.string(), "group of the store"),
        Column("variable", pa.string(), "variable of the group"),
        Column("labels", pa.string(), "the slice it fills, JSON: dimension -> label"),
        Column("stored_dtype", pa.string(), "type of the array"),
        Column("exact", pa.bool_(), "stored bit for bit"),
        Column("max_abs_error", pa.float64(), "largest rounding error, in the array's units"),
        Column("stored_bytes", pa.int64(), "size of the shard it fills; 0 if empty", "byte"),
    ),
)

#: Percent of the prescribed 42.7 Gy at or above which the V-columns count volume.
V_LEVELS = (65, 75, 90, 95, 100, 107)
#: Percent of the volume that receives at least the dose of the D-columns.
D_LEVELS = (1, 2, 50, 95, 98, 99)
#: Volumes, cm3, of the columns D…cc: the volume that receives at least that dose.
D_VOLUMES = (0.03, 1)

_COVERED = "over the covered part"


def _dose_columns() -> Iterable[Column]:
    """Yield columns of dose statistics, over a structure's voxels in the planning dose grid."""
    where = (
        f"{_COVERED}; null where nothing is covered, without dose, and where a dose is no number"
    )
    for name, what in (("mean", "mean"), ("min", "smallest"), ("max", "largest")):
        yield Column(f"dose_{name}_gy", pa.float64(), f"{what} dose, {where}", "Gy", True)
    for x in D_LEVELS:
        meaning = f"D{x}: largest dose that at least {x} % of the volume receives, {_COVERED}"
        yield Column(f"d{x}_gy", pa.float64(), meaning, "Gy", True)
    for cc in D_VOLUMES:
        meaning = (
            f"D{cc}cc: largest dose that at least {cc} cm3 receive, {_COVERED}; "
            "null where it is smaller"
        )
        yield Column(f"d{cc}cc_gy".replace(".", "_"), pa.float64(), meaning, "Gy", True)
    for unit, kind, of in (("%", "pct", "percent of the volume"), ("cm3", "cc", "volume")):
        for x in V_LEVELS:
            meaning = (
                f"V{x}: {of} at or above {x} % of {PRESCRIPTION_GY} Gy "
                f"({PRESCRIPTION_GY * x / 100:.3f} Gy), {_COVERED}"
            )
            yield Column(f"v{x}_{kind}", pa.float64(), meaning, unit, True)


_DOSE = tuple(_dose_columns())
#: Names of the dose statistics, in the order of the table.
DOSE_COLUMNS = tuple(c.name for c in _DOSE)

#: Columns that identify the segmentation of a row.
_SEGMENTATION = (
    *_WHO,
    _PROTOCOL,
    Column("grid", pa.string(), "voxel lattice: mri or sct"),
    Column("source", pa.string(), "clinical, nnunet, nnunet_fold or observer"),
    Column("structure", pa.string(), "delineated structure"),
    Column("fold", pa.int64(), "fold of the network, 0 to 9", nullable=True),
    Column("step", pa.int64(), "1: edited without, 2: with the uncertainty map", nullable=True),
    Column("observer", pa.string(), "obsB, obsC, obsD or obsE", nullable=True),
)
#: Names of the columns that identify segmentations.
SEGMENTATION_COLUMNS = tuple(c.name for c in _SEGMENTATION)

STRUCTURES_TABLE = Table(
    "structures",
    "one segmentation: a clinical mask on either grid, a network's, a fold's or an observer's",
    (
        *_SEGMENTATION,
        Column("voxels", pa.int64(), "voxels of the mask", "1"),
        Column("volume_cc", pa.float64(), "voxels times the volume of one", "cm3"),
        Column(
            "bbox_start", _SHAPE_OR_NONE, "first voxel of the bounding box (z, y, x)", "1", True
        ),
        Column(
            "bbox_stop", _SHAPE_OR_NONE, "end of the bounding box, exclusive (z, y, x)", "1", True
        ),
        Column("centroid_mm", _TRIPLE_OR_NONE, "mean voxel centre (z, y, x), LPS", "mm", True),
        Column("components", pa.int64(), "26-connected components", "1"),
        Column("empty_slices", pa.int64(), "axial slices without a voxel inside the extent", "1"),
        Column(
            "mask_sha256",
            pa.string(),
            "hash of the mask's voxels: equal masks of one grid, whoever drew them, have the same",
        ),
        Column(
            "listed_by_authors",
            pa.bool_(),
            "the authors list this mask, on this grid, with several components; null without a "
            "readable list, where it names no grid, and in stores that do not say",
            nullable=True,
        ),
        Column(
            "outside_voxels",
            pa.int64(),
            "of a clinical CTV: its voxels outside the PTV; of a clinical PTV: outside BODY; null "
            "for others, and where that structure is missing",
            "1",
            True,
        ),
        Column(
            "fiducials_inside",
            pa.int64(),
            "of a clinical CTV on the MRI grid: gold fiducials whose position lies in one of its "
            "voxels; null for others, and without fiducials",
            "1",
            True,
        ),
        Column(
            "margin_min_mm",
            pa.float64(),
            "of a PTV: smallest distance of its border voxels' centres from its CTV's; 0 where "
            "they touch or CTV is outside; null for others, and without CTV",
            "mm",
            True,
        ),
        Column(
            "margin_max_mm",
            pa.float64(),
            "of a PTV: largest distance of its border voxels' centres from its CTV's",
            "mm",
            True,
        ),
        Column(
            "dose_covered_pct",
            pa.float64(),
            "percent of the volume whose voxel centres lie between the outermost voxel centres of "
            "the planning dose grid, the covered part; null without planning grid (then dose "
            "statistics are over all of the structure) or voxels",
            "%",
            True,
        ),
        *_DOSE,
    ),
)

#: Bins of the `dvh` table in a gray. An integer, so that bin i begins at i / 10 Gy exactly.
DVH_BINS_PER_GY = 10
#: Width of the bins, Gy.
DVH_STEP_GY = 1 / DVH_BINS_PER_GY
#: Largest dose in the `dvh` table. A larger one is in another unit, or damaged.
DVH_MOST_GY = 1000

DVH = Table(
    "dvh",
    "one segmentation, with the cumulative dose-volume histogram of the dose on its grid",
    (
        *_SEGMENTATION,
        Column("volume_cc", pa.float64(), "volume of the whole segmentation", "cm3"),
        Column("voxel_cc", pa.float64(), "volume of a voxel", "cm3"),
        Column(
            "covered_pct",
            pa.float64(),
            "percent of the volume inside the planning dose grid, which alone is counted; null "
            "without planning grid (then all is counted) or voxels",
            "%",
            True,
        ),
        # float64: a voxel is less of a BODY than the precision of float32
        Column(
            "cumulative_cc",
            pa.list_(pa.float64()),
            f"volume that receives at least i x {DVH_STEP_GY} Gy, i = 0, 1, ..., as far as it is "
            "not 0; null without voxels or dose, and where a dose is no number or above "
            f"{DVH_MOST_GY} Gy",
            "cm3",
            True,
        ),
    ),
)

SLICES = Table(
    "slices",
    "one axial slice of the MRI grid",
    (
        *_WHO,
        _PROTOCOL,
        Column("z_index", pa.int64(), "index along z, 0 first in the array", "1"),
        Column("z_mm", pa.float64(), "z of the slice, LPS; null if oblique", "mm", True),
        *(
            Column(
                f"voxels_{s}",
                pa.int64(),
                f"voxels of the clinical {s} mask; null where the patient lacks it",
                "1",
                True,
            )
            for s in STRUCTURES
        ),
    ),
)

#: Most voxels of a structure that the `foreground` table samples.
FOREGROUND_SAMPLE = 1000

FOREGROUND = Table(
    "foreground",
    "one clinical structure of a patient on the MRI grid",
    (
        *_WHO,
        Column("structure", pa.string(), "delineated structure"),
        Column("total", pa.int64(), "voxels of the mask", "1"),
        Column(
            "indices",
            pa.list_(_SHAPE),
            f"seeded sample of up to {FOREGROUND_SAMPLE} of its voxels (z, y, x), in order",
            "1",
        ),
    ),
)

#: Percentiles of the `intensity` table, per mille: whole numbers, so that ranks are exact. nnU-Net
#: clips to the outermost; histogram matching has landmarks at 1 and 99 %, quartiles and median.
PERMILLE = (5, 10, 50, 250, 500, 750, 950, 990, 995)


def percentile_name(permille: int) -> str:
    """Return the column of a percentile, e.g. `p0_5` or `p25`."""
    return f"p{permille / 10:g}".replace(".", "_")


def _intensity(name: str, description: str) -> Column:
    """A statistic in the unit that the row names."""
    description = f"{description}, in `unit`; null where not measured"
    return Column(name, pa.float64(), description, nullable=True)


INTENSITY = Table(
    "intensity",
    "an image of a patient on a grid, with statistics of its values inside the clinical BODY",
    (
        *_WHO,
        _PROTOCOL,
        Column("grid", pa.string(), "voxel lattice of image and BODY: mri or sct"),
        Column("modality", pa.string(), "T2w or sCT"),
        Column("unit", pa.string(), "unit of the values: 1 (T2w) or HU (sCT)"),
        Column("voxels", pa.int64(), "voxels of BODY; null where not measured", "1", True),
        _intensity("mean", "mean"),
        _intensity("sd", "standard deviation of the population (divided by voxels)"),
        _intensity("min", "smallest value"),
        _intensity("max", "largest value"),
        *(
            _intensity(
                percentile_name(p),
                f"percentile {p / 10:g}: smallest value such that at least {p / 10:g} % of the "
                "voxels are not larger (NumPy's inverted_cdf)",
            )
            for p in PERMILLE
        ),
        Column(
            "reason",
            pa.string(),
            "why nothing was measured: no BODY on this grid, an empty one, or values that are inf "
            "or NaN; null where measured",
            nullable=True,
        ),
    ),
)


def _side_columns(side: str) -> Iterable[Column]:
    """Yield the columns that identify one segmentation of a pair."""
    yield Column(
        f"{side}_source",
        pa.string(),
        f"{side}: nnunet, nnunet_fold, observer, consensus_majority or consensus_staple",
    )
    yield Column(f"{side}_observer", pa.string(), f"{side}: observer", nullable=True)
    yield Column(
        f"{side}_step", pa.int64(), f"{side}: step of the observer or observers", nullable=True
    )
    yield Column(f"{side}_fold", pa.int64(), f"{side}: fold of the network", nullable=True)


def _measure(name: str, description: str, unit: str = "mm") -> Column:
    return Column(name, pa.float64(), description, unit, True)


_EMPTY = "null where either mask is empty"
AGREEMENT = Table(
    "agreement",
    "two segmentations of a structure of a patient, compared on the MRI grid",
    (
        *_WHO,
        _PROTOCOL,
        Column("structure", pa.string(), "delineated structure"),
        Column("pair", pa.string(), "kind of pair, a before b, e.g. nnunet_observer"),
        *_side_columns("a"),
        *_side_columns("b"),
        Column("a_cc", pa.float64(), "volume of a", "cm3"),
        Column("b_cc", pa.float64(), "volume of b", "cm3"),
        Column("difference_cc", pa.float64(), "volume of b less that of a", "cm3"),
        _measure("dice", "Dice coefficient; null where both masks are empty", "1"),
        *(
            _measure(
                f"surface_dice_{mm}mm",
                f"share of both surfaces within {mm} mm of the other; null where both are empty",
                "1",
            )
            for mm in (1, 2)
        ),
        _measure(
            "hd95_mm",
            "distance within which 95 % of a surface lies from the other, the larger of both "
            f"directions; {_EMPTY}",
        ),
        _measure("hd_mm", f"Hausdorff distance, the larger of both directions; {_EMPTY}"),
        _measure("assd_mm", f"average symmetric surface distance, by area; {_EMPTY}"),
        Column(
            "added_path_mm",
            pa.float64(),
            "added path length: outline of b in axial slices that is not outline of a",
            "mm",
        ),
        Column("added_voxels", pa.int64(), "voxels of b that a lacks", "1"),
        Column("removed_voxels", pa.int64(), "voxels of a that b lacks", "1"),
    ),
)

UNCERTAINTY = Table(
    "uncertainty",
    "voxels of one uncertainty, and what an observer edited among them",
    (
        *_WHO,
        _PROTOCOL,
        Column("structure", pa.string(), "delineated structure"),
        Column("step", pa.int64(), "1: edited without, 2: with the uncertainty map"),
        Column("observer", pa.string(), "obsB, obsC, obsD or obsE"),
        Column(
            "estimate",
            pa.string(),
            "map: the uncertainty map, in bins of 0.1; fold_mean: share of the folds' masks",
        ),
        Column("bin_low", pa.float64(), "smallest value of the bin", "1"),
        Column(
            "bin_high",
            pa.float64(),
            "end of the bin, exclusive; the last bin of the map has none, and holds all above; "
            "of fold_mean the one value",
            "1",
        ),
        Column("voxels", pa.int64(), "voxels of the whole MRI grid in the bin", "1"),
        Column("inside_voxels", pa.int64(), "of these, voxels in the observer's mask", "1"),
        Column("edited_voxels", pa.int64(), "of these, voxels that differ from nnunet's mask", "1"),
        Column("added_voxels", pa.int64(), "edited voxels that the observer added", "1"),
        Column("removed_voxels", pa.int64(), "edited voxels that the observer removed", "1"),
        _measure("edit_rate", "edited voxels / voxels; null where there are none", "1"),
        _measure(
            "map_mean",
            "mean of the uncertainty map over the voxels; null where there are none, without a "
            "map, and where it is not finite",
            "1",
        ),
    ),
)

#: Every table that a dataset may have, by name.
TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        PATIENTS,
        STRUCTURES_TABLE,
        DVH,
        SLICES,
        FOREGROUND,
        INTENSITY,
        ARRAYS,
        AGREEMENT,
        UNCERTAINTY,
    )
}
#: Tables of comparisons, which `measure` makes: a dataset has them once all its patients are
#: measured. A part without a row has no file.
COMPARED: tuple[str, ...] = (AGREEMENT.name, UNCERTAINTY.name)


@dataclass(frozen=True)
class View:
    """Some rows of a table under a name of their own, in SQL alone: those with these values."""

    name: str
    row: str
    table: str
    values: Mapping[str, str]


#: One source and one grid of `structures` each, so that no mean is taken over several.
VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View(
            "clinical",
            "a clinical structure of a patient on the MRI grid",
            "structures",
            {"source": "clinical", "grid": "mri"},
        ),
        View(
            "planning",
            "a clinical structure of a patient on the sCT grid, on which the plan was made",
            "structures",
            {"source": "clinical", "grid": "sct"},
        ),
    )
}
#: Tables whose rows come from voxels, not from a store's metadata.
MEASURED: tuple[str, ...] = ("structures", "dvh", "slices", "foreground", "intensity")


def table_file(table: str, part: str, number: int = 0) -> str:
    """Return a table file's path in the dataset, e.g. `metadata/patients/base-00000.parquet`."""
    return f"metadata/{table}/{part}-{number:05d}.parquet"


#: The patients table of all parts in one file, beside those by part.
COHORT_FILE = "metadata/patients.parquet"


def store_path(patient_id: str) -> str:
    """Return the path of a patient's store in the dataset."""
    return f"patients/{patient_id}.zarr"
