"""Figures of dose-volume histograms: what is drawn, of how many, and what the caption says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.figures.notebook import save_png
from lundprobe_zarr.vocabulary.names import STRUCTURES


@pytest.fixture(scope="module")
def cohort(dataset: Path) -> lp.Cohort:
    return lp.open_cohort(dataset)


@pytest.fixture(scope="module")
def curves(cohort: lp.Cohort) -> xr.Dataset:
    return lp.dvh(cohort, method="table")


def plot(curves: xr.Dataset, *arguments: Any, **options: Any) -> Figure:
    figure: Figure = curves.lp.plot_dvh(*arguments, **options)
    return figure


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def legend(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.legends[0].get_texts()]


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines if line.get_label() in _drawn(axes)}


def _drawn(axes: Any) -> set[str]:
    return {str(line.get_label()) for line in axes.lines if len(line.get_xdata()) > 2}


def test_a_patient_is_a_line_a_segmentation(cohort: lp.Cohort) -> None:
    curves = lp.dvh(cohort[0])
    figure = plot(curves)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == curves.structure.values.tolist()
    rectum = curves.sel(structure="Rectum")
    counted = float(rectum.volume_cc * rectum.covered_pct / 100)
    np.testing.assert_allclose(
        drawn["Rectum"].get_ydata(), 100 * rectum.cumulative_cc / counted, rtol=1e-12
    )
    assert axes.get_xlabel() == "Dose (Gy)"
    assert axes.get_ylabel().endswith("(%)")
    said = caption(figure)
    assert f"Patient {cohort[0].patient_id}, n = 1." in said
    assert "sCT grid, from voxels" in said
    assert "of the part inside the planning dose grid, at least 64.3 % (Genitalia)" in said
    assert any("84.3 % inside" in text for text in legend(figure) if text.startswith("Rectum"))
    styles = {(line.get_color(), str(line.get_linestyle())) for line in drawn.values()}
    assert len(styles) == len(drawn)


def test_a_cohort_is_a_median_and_a_band(cohort: lp.Cohort, curves: xr.Dataset) -> None:
    figure = plot(curves, volume="cc", quantiles=(25, 75))
    (axes,) = figure.axes
    assert list(lines(axes)) == list(STRUCTURES)
    rectum = curves.sel(structure="Rectum").cumulative_cc.values
    np.testing.assert_allclose(lines(axes)["Rectum"].get_ydata(), np.median(rectum, axis=0))
    band = axes.collections[STRUCTURES.index("Rectum")].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(np.percentile(rectum, 75, axis=0).max())
    assert "PenileBulb, n = 3" in legend(figure)
    assert "Rectum, n = 4" in legend(figure)
    assert axes.get_ylabel().endswith("(cm³)")
    said = caption(figure)
    assert "percentiles 25 to 75; n = 4 patients" in said
    assert "from the table of 0.1 Gy bins" in said


def test_by_protocol_there_is_a_panel_a_structure(curves: xr.Dataset) -> None:
    figure = plot(curves, by="protocol")
    panels = [a for a in figure.axes if a.get_title(loc="left")]
    assert [a.get_title(loc="left") for a in panels] == list(STRUCTURES)
    for panel in panels:
        texts = [t.get_text() for t in panel.get_legend().get_texts()]
        counts = [int(t.rpartition(" ")[2]) for t in texts]
        assert [t.partition(",")[0] for t in texts] == ["newAcq", "oldAcq"]
        assert sum(counts) == (
            3 if panel.get_title(loc="left") in ("PenileBulb", "Genitalia") else 4
        )
        first, second = (lines(panel)[name] for name in ("newAcq", "oldAcq"))
        assert first.get_color() != second.get_color()
        assert first.get_linestyle() != second.get_linestyle()
    assert {a.get_xlabel() for a in panels} == {"", "Dose (Gy)"}


def test_observers_and_folds_are_told_apart(cohort: lp.Cohort) -> None:
    everyone = lp.dvh(
        cohort.where("part = 'extended'"),
        "Rectum",
        sources=["clinical", "nnunet", "nnunet_fold", "observer"],
        grid="mri",
        method="table",
    )
    figure = plot(everyone)
    assert [t.partition(" (")[0] for t in legend(figure)] == [
        "Rectum",
        "Rectum, nnU-Net",
        "Rectum, nnU-Net fold",
        "Rectum, observer step 1",
        "Rectum, observer step 2",
    ]
    assert sum(len(line.get_xdata()) > 2 for line in figure.axes[0].lines) == 1 + 1 + 10 + 8
    assert (
        len(
            {
                str(h.get_linestyle()) + str(h._dash_pattern)
                for h in figure.legends[0].legend_handles
            }
        )
        == 5
    )
    by_step = plot(everyone, by="step")
    texts = [t.get_text() for t in by_step.axes[0].get_legend().get_texts()]
    assert texts == ["step 1, n = 1 (4 masks)", "step 2, n = 1 (4 masks)"]


def test_zero_outside_and_missing_dose_are_said(cohort: lp.Cohort, curves: xr.Dataset) -> None:
    zero = lp.dvh(cohort[0], "Rectum", outside="zero")
    figure = plot(zero)
    assert "outside the planning dose grid counts as 0 Gy" in caption(figure)
    (line,) = lines(figure.axes[0]).values()
    assert line.get_ydata()[0] == pytest.approx(100)
    assert line.get_ydata()[1] < 100
    dark = curves.copy(deep=True)
    dark.cumulative_cc[0] = np.nan
    figure = plot(dark)
    assert "1 segmentation without dose is not drawn" in caption(figure)
    assert f"{curves.structure.values[0]}, n = 3" in legend(figure)


def test_one_selected_curve_is_drawn(curves: xr.Dataset, cohort: lp.Cohort) -> None:
    one = curves.sel(structure="Rectum").sel(patient_id=cohort.ids[0])
    assert list(lines(plot(one).axes[0])) == ["Rectum"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "protocoll"}, "nearest: protocol"),
        ({"by": "observer"}, "which no segmentation here has"),
        ({"volume": "ml"}, "'%' or 'cc'"),
        ({"quantiles": (95, 5)}, "two percents"),
        ({"quantiles": 5}, "two percents"),
        ({"quantiles": (0, 101)}, "two percents"),
    ],
)
def test_wrong_arguments(curves: xr.Dataset, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plot(curves, **options)


def test_other_data_are_no_curves(cohort: lp.Cohort) -> None:
    with pytest.raises(UsageError, match=r"the curves that lp\.dvh"):
        plot(cohort[0].mri)


def test_a_table_of_metrics_has_no_curves(cohort: lp.Cohort) -> None:
    frame = lp.dvh(cohort, "Rectum", metrics=["D98%"])
    with pytest.raises(UsageError, match=r"table of metrics.*call lp\.dvh"):
        frame.lp.plot_dvh(by="protocol")


def test_a_figure_is_saved_as_png(curves: xr.Dataset, tmp_path: Path) -> None:
    save_png(plot(curves.sel(structure="Rectum")), tmp_path / "a.PNG", dpi=40)
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
    assert [f.name for f in tmp_path.iterdir()] == ["a.PNG"]
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        save_png(plot(curves), tmp_path / "a.pdf")


def test_caption_and_legend_round_the_covered_part_down(cohort: lp.Cohort) -> None:
    curves = lp.dvh(cohort[0], ["Rectum", "BODY"])
    curves["covered_pct"][:] = [84.27, 99.99]
    figure = plot(curves)
    assert "at least 84.2 % (Rectum)" in caption(figure)
    assert [text.rpartition(", ")[2] for text in legend(figure)][:2] == [
        "84.2 % inside)",
        "99.9 % inside)",
    ]
