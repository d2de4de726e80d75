"""Pictures of one slice: sides, proportions, outlines, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr
from labelled_volumes import aligned_affine, volume
from matplotlib.figure import Figure

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UsageError

VIEWS = {"axial": "zyx", "coronal": "yzx", "sagittal": "xzy"}  # normal, rows, columns


def t2w(patient: lp.Patient) -> xr.DataArray:
    return patient.mri.image.sel(modality="T2w")


def outline(figure: Figure, name: str) -> np.ndarray:
    """Vertices (n, 2) of an outline as parts of the panel, from its lower left corner."""
    (axes,) = figure.axes
    (found,) = (c for c in axes.collections if c.get_label() == name)
    vertices = np.concatenate([p.vertices for p in found.get_paths() if len(p.vertices)])
    return axes.transAxes.inverted().transform(axes.transData.transform(vertices))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_slice_lies_on_its_coordinates(extended: lp.Patient, view: str, reverse: bool) -> None:
    image = t2w(extended)
    if reverse:
        image = image.isel(
            z=slice(None, None, -1), y=slice(None, None, -1), x=slice(None, None, -1)
        )
    normal, rows, columns = VIEWS[view]
    at = float(extended.mri.lp.region("CTVT_427", extended).centre_mm["zyx".index(normal)])
    at += 1  # not half-way between two slices
    (axes,) = image.lp.plot(view, at).axes
    (drawn,) = axes.images
    left, right, bottom, top = drawn.get_extent()
    half = {d: (float(image[d][1]) - float(image[d][0])) / 2 for d in "zyx"}
    ends = {d: (float(image[d][0]) - half[d], float(image[d][-1]) + half[d]) for d in "zyx"}
    np.testing.assert_allclose((left, right, top, bottom), (*ends[columns], *ends[rows]))
    expected = image.sel({normal: at}, method="nearest").transpose(rows, columns)
    np.testing.assert_array_equal(np.asarray(drawn.get_array()), expected)
    assert axes.get_xlim() == pytest.approx(sorted(ends[columns]))
    ascends = axes.get_ylim()[1] > axes.get_ylim()[0]
    assert ascends == (rows == "z"), "head or front at the top"


def test_sides_and_outlines(extended: lp.Patient) -> None:
    figure = t2w(extended).lp.plot(masks=extended.clinical, at=30.0)
    assert outline(figure, "FemoralHead_L")[:, 0].min() > 0.5
    assert outline(figure, "FemoralHead_R")[:, 0].max() < 0.5
    assert outline(figure, "Rectum")[:, 1].max() < outline(figure, "BODY")[:, 1].max()
    letters = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    assert letters["R"][0] < letters["L"][0]
    assert letters["P"][1] < letters["A"][1]


def test_an_outline_is_where_the_mask_is(extended: lp.Patient) -> None:
    mask = extended.mask("CTVT_427")
    at = float(extended.mri.lp.region("CTVT_427", extended).centre_mm[0]) + 1
    (axes,) = t2w(extended).lp.plot(at=at, masks=mask).axes
    (found,) = (c for c in axes.collections if c.get_label() == "CTVT_427")
    vertices = np.concatenate([p.vertices for p in found.get_paths()])
    inside = np.argwhere(mask.sel(z=at, method="nearest").values)
    for column, dim in ((0, "x"), (1, "y")):
        places = mask[dim].values[inside[:, 1 - column]]
        half = abs(float(mask[dim][1] - mask[dim][0])) / 2
        ends = vertices[:, column].min(), vertices[:, column].max()
        np.testing.assert_allclose(ends, (places.min() - half, places.max() + half))


@pytest.mark.parametrize("view", VIEWS)
def test_a_millimetre_is_as_long_in_both_directions(extended: lp.Patient, view: str) -> None:
    figure = t2w(extended).lp.plot(view, masks=extended.clinical)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_window_extent()
    scales = box.width / np.ptp(axes.get_xlim()), box.height / np.ptp(axes.get_ylim())
    assert scales[0] == pytest.approx(scales[1], rel=1e-3)


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_written_is_cut_off(extended: lp.Patient, view: str) -> None:
    figure = t2w(extended).lp.plot(view, masks=extended.clinical)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    for artist in (axes.get_legend(), axes.title, axes._left_title, *axes.texts):
        box = artist.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1


def test_chosen_structures_are_in_the_key(extended: lp.Patient) -> None:
    figure = t2w(extended).lp.plot(
        at=30.0, masks=extended.clinical, structures=["CTVT_427", "Genitalia"]
    )
    key = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert key == ["CTVT_427", "Genitalia (not cut)"]
    plain = t2w(extended).lp.plot()
    assert plain.axes[0].get_legend() is None


def test_title_says_what_and_where(extended: lp.Patient) -> None:
    image = t2w(extended)
    (axes,) = image.lp.plot("coronal", at=-20.0).axes
    y = float(image.y.sel(y=-20, method="nearest"))
    assert axes.get_title(loc="left").strip() == f"T2w  ·  coronal  ·  y = {y:.1f} mm".replace(
        "-", "−"
    )


def test_style_goes_to_the_image(extended: lp.Patient) -> None:
    (axes,) = extended.mri.dose.lp.plot(cmap="inferno", vmin=0, vmax=42.7).axes
    assert axes.images[0].get_cmap().name == "inferno"
    assert axes.images[0].get_clim() == (0, 42.7)


def test_a_crop_with_its_own_masks(extended: lp.Patient) -> None:
    image = t2w(extended).lp.crop("CTVT_427", extended, margin_mm=40)
    masks = extended.clinical.lp.crop("CTVT_427", extended, margin_mm=40)
    figure = image.lp.plot(masks=masks, structures=["CTVT_427"])
    assert len(outline(figure, "CTVT_427"))
    with pytest.raises(UsageError, match="do not lie on the image's"):
        image.lp.plot(masks=extended.clinical)


def test_an_oblique_slice_says_so(askew: lp.Patient) -> None:
    (axes,) = t2w(askew).lp.plot(masks=askew.clinical).axes
    assert "oblique" in axes.get_title(loc="left")
    assert {"CTVT_427", "BODY"} <= {c.get_label() for c in axes.collections}


def test_a_notebook_shows_it_without_a_backend(extended: lp.Patient) -> None:
    figure = lp.accessor(t2w(extended)).plot()
    before = figure.get_size_inches().tolist()
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(picture[n : n + 4], "big") for n in (16, 20))
    assert (width, height) == pytest.approx(np.array(before) * figure.dpi, abs=1)
    assert figure._repr_png_() == picture


def test_uses_no_pyplot(extended: lp.Patient) -> None:
    before = "matplotlib.pyplot" in sys.modules
    t2w(extended).lp.plot()
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_what_is_refused(extended: lp.Patient, lacking: lp.Patient) -> None:
    with pytest.raises(UsageError, match="'top'; expected one of axial, coronal, sagittal"):
        t2w(extended).lp.plot("top")
    with pytest.raises(UsageError, match=r"no axial slice at z = 999"):
        t2w(extended).lp.plot(at=999)
    with pytest.raises(UsageError, match="modality is one of"):
        extended.mri.image.lp.plot()
    with pytest.raises(UsageError, match=r"masks=patient\.clinical"):
        t2w(extended).lp.plot(structures=["Rectum"])
    with pytest.raises(MissingStructureError, match="PenileBulb"):
        t2w(lacking).lp.plot(masks=lacking.clinical, structures=["PenileBulb"])


def test_one_slice_has_no_outline_across_it() -> None:
    data = volume(aligned_affine()).isel(z=[3])
    figure = data.dose.assign_attrs(data.attrs).lp.plot(
        "coronal", masks=data.mask.assign_attrs(data.attrs)
    )
    assert not figure.axes[0].collections
