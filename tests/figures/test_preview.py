"""The picture of a patient: sides, proportions, names, and what it says when things are missing."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from lundprobe_zarr.errors import DamagedStoreError, UsageError
from lundprobe_zarr.figures.paint import STRUCTURE_LINES, scale_bar_mm
from lundprobe_zarr.figures.planes import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    VIEWS,
    Consensus,
    Preview,
    frame_of,
    read_preview,
    read_slice,
)
from lundprobe_zarr.figures.preview import draw_preview, save_preview
from lundprobe_zarr.figures.thumbnail import slice_jpeg
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import STRUCTURES
from tests.altered import rewrite


def _patients(dataset: Path, part: str) -> list[str]:
    texts = {p.stem: (p / "zarr.json").read_text() for p in (dataset / "patients").glob("*.zarr")}
    return sorted(i for i, t in texts.items() if json.loads(t)["attributes"]["part"] == part)


def _store(dataset: Path, patient_id: str) -> Path:
    return dataset / "patients" / f"{patient_id}.zarr"


@pytest.fixture(scope="module")
def extended(dataset: Path) -> Preview:
    return read_preview(Location(dataset), _patients(dataset, "extended")[0])


@pytest.fixture(scope="module")
def base(dataset: Path) -> list[Preview]:
    return [read_preview(Location(dataset), i) for i in _patients(dataset, "base")]


@pytest.fixture(scope="module")
def figure(extended: Preview) -> Figure:
    return draw_preview(extended)


@pytest.fixture(scope="module")
def base_figures(base: list[Preview]) -> list[Figure]:
    return [draw_preview(preview) for preview in base]


@pytest.fixture
def copied(dataset: Path, extended: Preview, tmp_path: Path) -> Path:
    """A dataset of the extended patient alone, to spoil."""
    source = _store(dataset, extended.patient_id)
    shutil.copytree(source, _store(tmp_path, extended.patient_id))
    return tmp_path


def _edit(dataset: Path, patient_id: str, path: str, name: str, value: object) -> None:
    """Set an attribute of a node in a store's consolidated metadata."""

    def change(raw: dict[str, Any]) -> None:
        raw["consolidated_metadata"]["metadata"][path]["attributes"][name] = value

    rewrite(_store(dataset, patient_id) / "zarr.json", change)


def _axes(figure: Figure, name: str) -> Axes:
    (found,) = (a for a in figure.axes if a.get_label() == name)
    return found


def _places(axes: Axes, name: str) -> np.ndarray:
    """Vertices of the contours named `name`, as parts of the panel: x rightwards, y upwards."""
    (contour,) = (c for c in axes.collections if c.get_label() == name)
    points = np.concatenate([path.vertices for path in contour.get_paths()])
    return axes.transAxes.inverted().transform(axes.transData.transform(points))


def _texts(figure: Figure) -> str:
    legends = [a.get_legend() for a in figure.axes]
    entries = [t for each in legends if each for t in each.get_texts()]
    inside = [t for a in figure.axes for t in a.texts]
    return "\n".join(t.get_text() for t in [*figure.texts, *entries, *inside])


def _letters(axes: Axes) -> dict[str, tuple[float, float]]:
    return {t.get_text(): t.get_position() for t in axes.texts if len(t.get_text()) == 1}


def test_patients_left_is_at_the_right(figure: Figure) -> None:
    axial = _axes(figure, "anatomy axial")
    assert _places(axial, "FemoralHead_L")[:, 0].min() > 0.5
    assert _places(axial, "FemoralHead_R")[:, 0].max() < 0.5
    letters = _letters(axial)
    assert letters["R"][0] < 0.1 < 0.9 < letters["L"][0]


def test_anterior_is_at_the_top_of_the_axial_view(figure: Figure) -> None:
    axial = _axes(figure, "anatomy axial")
    rectum, prostate = _places(axial, "Rectum"), _places(axial, "CTVT_427")
    assert rectum[:, 1].mean() < prostate[:, 1].mean()
    letters = _letters(axial)
    assert letters["P"][1] < 0.1 < 0.9 < letters["A"][1]


@pytest.mark.parametrize("patient", range(3))
def test_bladder_is_above_the_prostate(base_figures: list[Figure], patient: int) -> None:
    sagittal = _axes(base_figures[patient], "anatomy sagittal")
    bladder, prostate = _places(sagittal, "Bladder"), _places(sagittal, "CTVT_427")
    assert bladder[:, 1].mean() > prostate[:, 1].mean()
    for view in ("sagittal", "coronal"):
        letters = _letters(_axes(base_figures[patient], f"anatomy {view}"))
        assert letters["I"][1] < 0.1 < 0.9 < letters["S"][1]


def test_anterior_is_at_the_left_of_the_sagittal_view(figure: Figure) -> None:
    sagittal = _axes(figure, "anatomy sagittal")
    rectum, prostate = _places(sagittal, "Rectum"), _places(sagittal, "CTVT_427")
    assert rectum[:, 0].mean() > prostate[:, 0].mean()
    assert _letters(sagittal)["A"][0] < 0.1


def _edges(centres: np.ndarray) -> tuple[float, float]:
    half = (centres[1] - centres[0]) / 2
    return centres[0] - half, centres[-1] + half


def test_image_lies_on_the_stores_coordinates(
    dataset: Path, extended: Preview, figure: Figure
) -> None:
    with xr.open_zarr(_store(dataset, extended.patient_id), group="mri") as mri:
        axes = {a: mri[a].values for a in "zyx"}
        there = dict(zip("zyx", (axes[a][extended.index[a]] for a in "zyx"), strict=True))
        expected = {
            v.name: mri.image.sel(modality="T2w").sel({v.normal: there[v.normal]}).values
            for v in VIEWS
        }
    for view in VIEWS:
        panel = _axes(figure, f"anatomy {view.name}")
        image = panel.images[0]
        left, right, bottom, top = image.get_extent()
        columns, rows = axes[view.columns], axes[view.rows]
        np.testing.assert_allclose((left, right), _edges(columns))
        np.testing.assert_allclose((top, bottom), _edges(rows))
        np.testing.assert_array_equal(np.asarray(image.get_array()), expected[view.name])


def test_a_millimetre_is_as_long_in_every_direction_and_panel_of_a_row(figure: Figure) -> None:
    figure.draw_without_rendering()
    scales = []
    for row in ("anatomy", "dose"):
        for view in VIEWS:
            axes = _axes(figure, f"{row} {view.name}")
            box, (x0, x1), (y0, y1) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
            scales += [box.width / abs(x1 - x0), box.height / abs(y1 - y0)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-3)


def test_scale_bar_is_as_long_as_it_says(figure: Figure) -> None:
    axes = _axes(figure, "step 1 axial")
    (bar,) = (line for line in axes.lines if line.get_label() == "scale bar")
    length = np.ptp(bar.get_xdata()) * np.ptp(axes.get_xlim())
    assert f"{length:.0f} mm" in {t.get_text() for t in axes.texts}
    assert [scale_bar_mm(w) for w in (10, 100, 230, 500)] == [5, 20, 50, 100]


def test_slices_go_through_the_ctvs_centroid(dataset: Path, extended: Preview) -> None:
    with xr.open_zarr(_store(dataset, extended.patient_id), group="mri/clinical") as clinical:
        mask = clinical.mask.sel(structure="CTVT_427").values
    centroid = np.argwhere(mask).mean(axis=0)
    assert [extended.index[a] for a in "zyx"] == np.rint(centroid).astype(int).tolist()
    assert extended.on_target


def test_every_structure_is_named_and_drawn_in_its_own_way(figure: Figure) -> None:
    texts = _texts(figure)
    for structure in STRUCTURES:
        assert structure in texts
    looks = {(line.color, line.style) for line in STRUCTURE_LINES.values()}
    assert len(looks) == len(STRUCTURES)


def test_missing_structures_are_named(base: list[Preview], base_figures: list[Figure]) -> None:
    named = 0
    for preview, drawn in zip(base, base_figures, strict=True):
        texts = _texts(drawn)
        for structure in STRUCTURES:
            assert (f"missing: {structure}" in texts) == (structure not in preview.masks)
            named += structure not in preview.masks
    assert named  # else the phantom tests nothing here


def test_header_says_what_it_is(extended: Preview, figure: Figure) -> None:
    texts = _texts(figure)
    for fact in (extended.patient_id, "extended part", extended.protocol, "SYNTHETIC PHANTOM"):
        assert fact in texts


def test_a_real_patient_has_no_synthetic_mark(extended: Preview) -> None:
    assert "SYNTHETIC" not in _texts(draw_preview(replace(extended, synthetic=False)))


def test_isodoses_and_dose_bar(figure: Figure) -> None:
    axes = _axes(figure, "dose axial")
    high, low = _places(axes, "95 %"), _places(axes, "50 %")
    assert np.ptp(high[:, 0]) < np.ptp(low[:, 0])
    ylabel = _axes(figure, "dose bar").get_ylabel()
    assert ylabel == "dose (Gy)"
    assert "isodoses in % of 42.7 Gy" in _texts(figure)


def test_dose_is_on_the_sct_and_without_one_on_the_t2w(extended: Preview) -> None:
    on_t2w = draw_preview(replace(extended, sct={}))
    assert "Planned dose on T2w" in _texts(on_t2w)
    background = _axes(on_t2w, "dose axial").images[0].get_array()
    np.testing.assert_array_equal(np.asarray(background), extended.t2w["axial"])


def test_observers_before_and_after_and_the_ensemble(extended: Preview, figure: Figure) -> None:
    for step in (1, 2):
        names = {c.get_label() for c in _axes(figure, f"step {step} axial").collections}
        assert {f"CTVT_427 obs{o}" for o in "BCDE"} <= names
        assert "CTVT_427 ensemble" in names
    assert extended.consensus is not None
    assert len(extended.consensus.observers) == 16


def test_a_missing_observer_is_named_and_not_drawn(extended: Preview) -> None:
    assert extended.consensus is not None
    observers = dict(extended.consensus.observers)
    del observers["Rectum", 2, "obsC"]
    spoilt = replace(extended, consensus=replace(extended.consensus, observers=observers))
    drawn = draw_preview(spoilt)
    assert "missing, step 2 Rectum:\nobsC" in _texts(drawn)
    for step, there in ((1, True), (2, False)):
        names = {c.get_label() for c in _axes(drawn, f"step {step} axial").collections}
        assert ("Rectum obsC" in names) == there


def test_base_patients_have_no_consensus_row(base_figures: list[Figure]) -> None:
    labels = {a.get_label() for a in base_figures[0].axes}
    assert not labels & {"uncertainty axial", "step 1 axial"}


def test_nothing_written_overlaps_or_is_cut(extended: Preview) -> None:
    nothing = Consensus({}, {}, {})
    bare = replace(extended, masks={}, on_target=False, dose={}, consensus=nothing)
    nowhere = {s: {v: p & False for v, p in m.items()} for s, m in extended.masks.items()}
    for preview in (extended, bare, replace(extended, masks=nowhere)):
        drawn = draw_preview(preview)
        drawn.draw_without_rendering()
        texts = [t for t in drawn.texts if t.get_text()]
        texts += [t for a in drawn.axes if (g := a.get_legend()) for t in g.get_texts()]
        _require_apart(drawn, [t.get_window_extent() for t in texts])


def _require_apart(figure: Figure, boxes: Iterable) -> None:
    seen: list = []
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in seen)
        seen.append(box)


def test_nan_everywhere_is_drawn_without_a_warning(extended: Preview) -> None:
    nan = {v.name: np.full(extended.frame.shape(v), np.nan) for v in VIEWS}
    drawn = draw_preview(replace(extended, t2w=nan, sct=nan, dose=nan))
    drawn.draw_without_rendering()
    assert "CTVT_427" in {c.get_label() for c in _axes(drawn, "dose axial").collections}


def test_without_ctv_the_volumes_centre_and_says_so(copied: Path, extended: Preview) -> None:
    raw = json.loads((_store(copied, extended.patient_id) / "zarr.json").read_text())
    mask = raw["consolidated_metadata"]["metadata"]["mri/clinical/mask"]
    sources = json.loads(mask["attributes"]["sources"])
    others = [s for s in sources if s["labels"]["structure"] != "CTVT_427"]
    _edit(copied, extended.patient_id, "mri/clinical/mask", "sources", others)
    preview = read_preview(Location(copied), extended.patient_id)
    shape = preview.frame.shape(AXIAL)
    assert (preview.index["y"], preview.index["x"]) == (shape[0] // 2, shape[1] // 2)
    texts = _texts(draw_preview(preview))
    assert "CTVT_427 is missing: the slices pass through the centre of the volume" in texts
    assert "missing: CTVT_427" in texts


def test_oblique_grid_is_drawn_by_index_and_says_so(copied: Path, extended: Preview) -> None:
    shape = [len(extended.frame.positions[a]) for a in "zyx"]
    angle = np.deg2rad(20)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, -3.0, 7.0])
    affine[:3, 3] = 1000.0
    _edit(copied, extended.patient_id, "mri", "affine", affine.tolist())
    preview = read_preview(Location(copied), extended.patient_id)
    drawn = draw_preview(preview)
    assert "Oblique grid" in _texts(drawn)
    assert f"slice {preview.index['z'] + 1} of {shape[0]}" in _texts(drawn)
    left, right, bottom, top = _axes(drawn, "anatomy coronal").images[0].get_extent()
    assert (right - left, bottom - top) == pytest.approx((2.0 * shape[2], 7.0 * shape[0]))
    assert _places(_axes(drawn, "anatomy axial"), "FemoralHead_L")[:, 0].min() > 0.5


@pytest.mark.parametrize(
    ("columns", "order", "steps"),
    [
        (np.diag([-2.0, -3.0, 4.0]), {"x": 2, "y": 1, "z": 0}, {"x": 2, "y": 3, "z": 4}),
        (np.diag([2.0, 3.0, -4.0]), {"x": 2, "y": 1, "z": 0}, {"x": -2, "y": -3, "z": -4}),
        (  # i runs to the head, j to the right, k to the back
            np.array([[0, 3.0, 0], [0, 0, -4.0], [2.0, 0, 0]]),
            {"z": 2, "x": 1, "y": 0},
            {"z": 2, "x": -3, "y": 4},
        ),
    ],
)
def test_frame_follows_the_nearest_patient_axes(
    columns: np.ndarray, order: dict[str, int], steps: dict[str, float]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = columns
    frame = frame_of(affine, (5, 6, 7))
    assert frame.order == order
    assert frame.steps == steps
    assert {a: len(p) for a, p in frame.positions.items()} == {
        a: (5, 6, 7)[k] for a, k in order.items()
    }


def test_permuted_grid_is_shown_the_right_way_round(copied: Path, extended: Preview) -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[0, 3.0, 0], [2.0, 0, 0], [0, 0, 4.0]]  # i to the front, j to the right
    _edit(copied, extended.patient_id, "mri", "affine", affine.tolist())
    preview = read_preview(Location(copied), extended.patient_id)
    for view in VIEWS:
        assert preview.t2w[view.name].shape == preview.frame.shape(view)
    with xr.open_zarr(_store(copied, extended.patient_id), group="mri") as mri:
        stored = mri.image.sel(modality="T2w").values
    np.testing.assert_array_equal(preview.t2w["axial"], stored[preview.index["z"]].T)


def test_reads_no_whole_volume_but_the_ctv(
    dataset: Path, extended: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[dict] = []
    real = StoreReader.volume

    def spy(reader: StoreReader, array: Any, record: Any) -> Any:
        whole.append(record.labels)
        return real(reader, array, record)

    monkeypatch.setattr(StoreReader, "volume", spy)
    read_preview(Location(dataset), extended.patient_id)
    assert whole == [{"structure": "CTVT_427"}]


def test_a_lost_shard_is_an_error_and_not_an_empty_picture(copied: Path, extended: Preview) -> None:
    (_store(copied, extended.patient_id) / "mri/dose/c/0/0/0").unlink()
    with pytest.raises(DamagedStoreError, match="mri/dose"):
        read_preview(Location(copied), extended.patient_id)


def test_a_damaged_shard_is_an_error(copied: Path, extended: Preview) -> None:
    shard = _store(copied, extended.patient_id) / "mri/image/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedStoreError, match="mri/image"):
        read_preview(Location(copied), extended.patient_id)


def test_saves_a_png_and_leaves_nothing_else(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "patient.png"
    patient_id = _patients(dataset, "base")[0]
    save_preview(Location(dataset), patient_id, out, dpi=50)
    picture = imread(out)
    assert picture.shape[1] == 600
    assert picture[..., :3].std() > 0.1
    assert list(out.parent.iterdir()) == [out]


def test_a_failed_write_keeps_the_old_picture(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "patient.png"
    out.write_bytes(b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lundprobe_zarr.storage.local.os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{out}'"):
        save_preview(Location(dataset), _patients(dataset, "base")[0], out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["patient.jpg", "patient", "patient.png.txt"])
def test_only_png(dataset: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}.*\.png"):
        save_preview(Location(dataset), _patients(dataset, "base")[0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_dpi_must_be_positive(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dpi is 0"):
        save_preview(Location(dataset), "any", tmp_path / "a.png", dpi=0)


def test_views_name_their_sides() -> None:
    assert (AXIAL.letters, CORONAL.letters, SAGITTAL.letters) == ("RLAP", "RLSI", "APSI")


def test_a_slice_is_that_of_its_voxel(dataset: Path) -> None:
    location, (patient, *_) = Location(dataset), _patients(dataset, "base")
    with xr.open_datatree(_store(dataset, patient), engine="zarr") as tree:
        t2w = tree["mri"].image.sel(modality="T2w").values
        rectum = tree["mri/clinical"].mask.sel(structure="Rectum").values
    for centre, k in (([3.4, 0, 0], 3), (None, len(t2w) // 2)):
        found = read_slice(location, patient, centre)
        np.testing.assert_array_equal(found.t2w, t2w[k])
        np.testing.assert_array_equal(found.masks["Rectum"], rectum[k])


def test_a_picture_for_a_page_is_a_small_jpeg(dataset: Path) -> None:
    location, (patient, *_) = Location(dataset), _patients(dataset, "base")
    pictures = [slice_jpeg(location, patient, centre) for centre in ([6, 0, 0], None, [0, 0, 0])]
    assert len(set(pictures)) == len(pictures)
    for picture in pictures:  # the last has no structure but BODY, so it is the whole slice
        assert len(picture) < 40_000
        pixels = imread(io.BytesIO(picture), format="jpeg")
        height, width, _ = pixels.shape
        assert width == 352
        assert 0.69 * width <= height <= 1.01 * width
        assert pixels.std() > 20
    with pytest.raises(DamagedStoreError):
        slice_jpeg(location, "newAcq_ffffffffffffffff", None)
