"""Agreement, consensus and the observer study, as users ask for them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
import xarray as xr
from labelled_volumes import oblique_affine, volume
from scipy import stats

import lundprobe_zarr as lp
from benchmarks.cohort import simulate
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.schema.tables import TABLES, table_file
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.names import OBSERVERS, STEPS, TARGETS


def mask_of(patient: lp.Patient, row: Any, side: str) -> xr.DataArray:
    """The mask that a side of a row of `agreement` names."""
    source, structure = row[f"{side}_source"], row.structure
    if source == "nnunet":
        return patient.nnunet.mask.sel(structure=structure)
    if source == "nnunet_fold":
        return patient.nnunet.fold_mask.sel(structure=structure, fold=row[f"{side}_fold"])
    step = row[f"{side}_step"]
    if source == "observer":
        observer = row[f"{side}_observer"]
        return patient.observers.mask.sel(structure=structure, step=step, observer=observer)
    return lp.consensus(patient, structure, source.partition("_")[2], step=step).mask


class TestAgreement:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it calls SciPy by an old name
    @pytest.mark.parametrize("structure", TARGETS)
    def test_rows_are_those_of_an_independent_computation(
        self, extended: lp.Patient, structure: str
    ) -> None:
        peer = pytest.importorskip("surface_distance")
        spacing = extended.mri.lp.spacing_mm.tolist()
        table = lp.agreement(extended, structure)
        assert len(table) == 96
        for _, row in table.groupby("pair").head(3).iterrows():
            a, b = (mask_of(extended, row, side).values for side in "ab")
            theirs = peer.compute_surface_distances(a, b, spacing)
            assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
            assert row.hd_mm == pytest.approx(peer.compute_robust_hausdorff(theirs, 100))
            assert row.hd95_mm == pytest.approx(peer.compute_robust_hausdorff(theirs, 95))
            assert row.surface_dice_2mm == pytest.approx(
                peer.compute_surface_dice_at_tolerance(theirs, 2)
            )
            assert row.added_voxels == (b & ~a).sum()
            assert row.removed_voxels == (a & ~b).sum()
            assert row.difference_cc == pytest.approx(
                (int(b.sum()) - int(a.sum())) * np.prod(spacing) / 1000
            )

    def test_computed_from_voxels_it_is_the_table(self, extended: lp.Patient) -> None:
        table = lp.agreement(extended, "Rectum")
        pd.testing.assert_frame_equal(table, lp.agreement(extended, "Rectum", compute=True))
        options = lp.agreement(
            extended, "Rectum", "consensus_observer", compute=True, ties="foreground",
            tolerances_mm=(2.5,),
        )  # fmt: skip
        assert "surface_dice_2_5mm" in options
        votes = options[options.a_source == "consensus_majority"].a_cc.to_numpy()
        fewer = table[table.a_source == "consensus_majority"]
        assert (votes >= fewer[fewer.pair == "consensus_observer"].a_cc.to_numpy()).all()

    def test_of_a_cohort_it_is_that_of_its_patients(
        self, cohort: lp.Cohort, extended: lp.Patient
    ) -> None:
        found = lp.agreement(cohort, pairs=("step1_step2", "fold_nnunet"))
        assert set(found.patient_id) == {extended.patient_id}
        assert set(found.pair) == {"step1_step2", "fold_nnunet"}
        assert str(found.a_fold.dtype) == "Int64"
        assert cohort.sql("SELECT count(*) AS n FROM agreement").n[0] == 192

    def test_mistakes(self, cohort: lp.Cohort, extended: lp.Patient) -> None:
        base = cohort.where("part = 'base'")
        for of in (base, base[0]):
            with pytest.raises(UnknownLabelError, match="base patients have none"):
                lp.agreement(of)
        with pytest.raises(MissingStructureError, match="no segmentations of Bladder"):
            lp.agreement(extended, "Bladder")
        with pytest.raises(UnknownLabelError, match="nearest: Rectum"):
            lp.agreement(extended, "Rectm")
        for given, said in (
            ({"pairs": "observers"}, "nearest: observer_observer"),
            ({"ties": "foreground"}, "compute=True"),
            ({"ties": "both", "compute": True}, "ties='both'"),
            ({"tolerances_mm": (-1,), "compute": True}, "tolerances_mm"),
        ):
            with pytest.raises(UsageError, match=said):
                lp.agreement(extended, **given)
        with pytest.raises(UsageError, match="compare_masks"):
            lp.agreement(extended.mask("Rectum"))  # type: ignore[arg-type]


class TestCompareMasks:
    def test_labelled_masks_know_their_spacing(self, extended: lp.Patient) -> None:
        network = extended.nnunet.mask.sel(structure="Rectum")
        table = lp.agreement(extended, "Rectum", "nnunet_observer")
        found = lp.compare_masks(network, mask_of(extended, table.loc[0], "b"))
        for name, value in found.items():
            assert table.loc[0, str(name)] == pytest.approx(value)
        sizes = extended.mri.lp.spacing_mm
        plain = lp.compare_masks(
            network.values, mask_of(extended, table.loc[0], "b").values, spacing_mm=sizes
        )
        assert plain.to_dict() == pytest.approx(found.to_dict())
        mixed = lp.compare_masks(network, mask_of(extended, table.loc[0], "b").values)
        assert mixed.to_dict() == pytest.approx(found.to_dict())

    def test_a_spacing_in_another_order_is_refused_where_it_can_be_known(
        self, extended: lp.Patient
    ) -> None:
        mask = extended.mask("Rectum")
        sizes = extended.mri.lp.spacing_mm
        with pytest.raises(UsageError, match=r"in another order; expected .*z, y, x"):
            lp.compare_masks(mask, mask, spacing_mm=sizes[::-1])
        with pytest.raises(UsageError, match=r"spacing_mm=\(1.0, 1.0, 1.0\); expected"):
            lp.compare_masks(mask, mask.values, spacing_mm=(1, 1, 1))
        assert lp.compare_masks(mask, mask, spacing_mm=sizes).dice == 1

    def test_masks_of_other_voxels_are_compared_only_if_resampling_is_asked_for(
        self, extended: lp.Patient
    ) -> None:
        mri, sct = extended.mask("Rectum"), extended.mask("Rectum", "sct")
        with pytest.raises(UsageError, match=r"different voxels.*resample=True"):
            lp.compare_masks(mri, sct)
        found = lp.compare_masks(mri, sct, resample=True)
        assert 0.8 < found.dice < 1
        moved = sct.lp.resample_like(mri, fill=0)
        assert lp.compare_masks(mri, moved).to_dict() == pytest.approx(found.to_dict())

    def test_mistakes(self, extended: lp.Patient) -> None:
        mask = extended.mask("Rectum")
        with pytest.raises(UsageError, match="two plain arrays without spacing_mm"):
            lp.compare_masks(mask.values, mask.values)
        with pytest.raises(UsageError, match="three numbers"):
            lp.compare_masks(mask.values, mask.values, spacing_mm=(1, 2))
        with pytest.raises(UsageError, match="holds several volumes"):
            lp.compare_masks(extended.clinical.mask, mask)
        with pytest.raises(UsageError, match="mask b is int64"):
            lp.compare_masks(mask, mask.astype(int))

    def test_oblique_grids_have_a_spacing_sheared_ones_have_not(self) -> None:
        placed = volume(oblique_affine()).lp.track().mask.sel(structure="CTVT_427")
        assert lp.compare_masks(placed, placed).dice == 1
        sheared = oblique_affine()
        sheared[:3, 0] += 0.3 * sheared[:3, 1]
        askew = volume(sheared).lp.track().mask.sel(structure="CTVT_427")
        with pytest.raises(UsageError, match="right angles"):
            lp.compare_masks(askew, askew)


class TestConsensus:
    @pytest.mark.parametrize("step", STEPS)
    def test_staple_is_simpleitks_on_the_full_volume(self, extended: lp.Patient, step: int) -> None:
        found = lp.consensus(extended, "CTVT_427", "staple", step=step)
        masks = extended.observers.mask.sel(structure="CTVT_427", step=step).values
        peer = sitk.STAPLEImageFilter()
        images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in masks]
        expected = sitk.GetArrayFromImage(peer.Execute(images))
        np.testing.assert_allclose(found.probability.values, expected, atol=1e-5)
        np.testing.assert_allclose(found.sensitivity, peer.GetSensitivity(), atol=1e-5)
        np.testing.assert_allclose(found.specificity, peer.GetSpecificity(), atol=1e-5)
        np.testing.assert_array_equal(found.mask.values, expected >= 0.5)
        assert found.observer.values.tolist() == list(OBSERVERS)

    def test_majorities_of_observers_and_folds(self, extended: lp.Patient) -> None:
        masks = extended.observers.mask.sel(structure="Rectum", step=1).values
        found = lp.consensus(extended, "Rectum")
        np.testing.assert_array_equal(found.mask.values, masks.sum(0) > 2)
        assert found.attrs["ties"] == "background"
        ties = lp.consensus(extended, "Rectum", ties="foreground")
        np.testing.assert_array_equal(ties.mask.values, masks.sum(0) >= 2)
        two = lp.consensus(extended, "Rectum", observers=["obsB", "obsD"])
        np.testing.assert_array_equal(two.mask.values, masks[0] & masks[2])
        folds = extended.nnunet.fold_mask.sel(structure="Rectum").values
        of_folds = lp.consensus(extended, "Rectum", source="nnunet_fold")
        np.testing.assert_array_equal(of_folds.mask.values, folds.sum(0) > 5)

    def test_it_is_lazy_and_labelled(self, extended: lp.Patient) -> None:
        found = lp.consensus(extended, "Rectum", "staple")
        assert found.mask.chunks is not None
        np.testing.assert_array_equal(found.mask.lp.affine, extended.mri.lp.affine)
        cut = found.mask.lp.crop("Rectum", extended)
        assert cut.values.any()
        assert cut.shape < found.mask.shape
        xr.testing.assert_equal(found.z, extended.mri.z)

    def test_estimates_of_folds_beside_the_map(self, extended: lp.Patient) -> None:
        found = lp.fold_uncertainty(extended, "Rectum").compute()
        folds = extended.nnunet.fold_mask.sel(structure="Rectum").values
        np.testing.assert_allclose(found.fold_mean, folds.mean(0), atol=1e-6)
        np.testing.assert_allclose(found.decision_sd, folds.std(0), atol=1e-6)
        np.testing.assert_allclose(
            found.entropy, stats.entropy([folds.mean(0), 1 - folds.mean(0)], base=2), atol=1e-6
        )
        expected = extended.nnunet.uncertainty.sel(structure="Rectum")
        np.testing.assert_array_equal(found["map"], expected)
        assert found.fold_mean.dtype == np.float32

    def test_mistakes(self, cohort: lp.Cohort, extended: lp.Patient) -> None:
        base = cohort.where("part = 'base'")[0]
        for function in (lp.consensus, lp.fold_uncertainty):
            with pytest.raises(UnknownLabelError, match="base patients have none"):
                function(base, "Rectum")
            with pytest.raises(MissingStructureError, match="no segmentations of Bladder"):
                function(extended, "Bladder")
            with pytest.raises(UnknownLabelError, match="nearest"):
                function(extended, "Rektum")
        for given, said in (
            ({"method": "mean"}, "method='mean'"),
            ({"source": "fold"}, "source='fold'"),
            ({"step": 3}, "step=3"),
            ({"observers": ["obsX"]}, "'obsX' in step 1"),
            ({"observers": ["obsB"]}, "of 1 masks"),
            ({"observers": ["obsB"], "source": "nnunet_fold"}, "of folds"),
            ({"ties": "both"}, "ties='both'"),
        ):
            with pytest.raises(UsageError, match=said):
                lp.consensus(extended, "Rectum", **given)


PATIENTS = 12
GAIN = {"obsB": 0.05, "obsC": 0.0, "obsD": 0.02, "obsE": -0.01}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> lp.Cohort:
    """Tables of twelve extended patients: what step 2 changes is known for each observer."""
    folder = tmp_path_factory.mktemp("study")
    simulate(folder, 13 * PATIENTS)
    everyone = lp.open_cohort(folder).where("part = 'extended'").ids
    rng = np.random.default_rng(7)
    tables = {"agreement": list(_pairs(everyone, rng)), "uncertainty": list(_edits(everyone))}
    manifest = open_manifest(Location(folder))
    for name, rows in tables.items():
        file = table_file(name, "extended")
        (folder / file).parent.mkdir()
        pq.write_table(TABLES[name].from_rows(rows), folder / file)
        manifest.tables[name] = {"extended": [file]}
    (folder / "lundprobe.json").write_text(manifest.dump())
    return lp.open_cohort(folder)


def _pairs(everyone: list[str], rng: np.random.Generator) -> Any:
    blank = dict.fromkeys(c.name for c in TABLES["agreement"].columns)
    numbers = dict.fromkeys(("a_cc", "b_cc", "difference_cc", "added_path_mm"), 1.0)
    for patient, structure in product(everyone, TARGETS):
        who = {"patient_id": patient, "part": "extended", "protocol": "newAcq"}
        for observer in OBSERVERS:
            start = 0.8 + 0.02 * rng.standard_normal()
            for step in STEPS:
                gain = (GAIN[observer] + 1e-3 * rng.standard_normal()) if GAIN[observer] else 0
                yield blank | numbers | who | {
                    "structure": structure, "pair": "nnunet_observer", "a_source": "nnunet",
                    "b_source": "observer", "b_observer": observer, "b_step": step,
                    "dice": start + (gain if step == 2 else 0), "added_voxels": 10 * step,
                    "removed_voxels": 5,
                    "hd95_mm": None if observer == "obsE" and step == 2 else float(step),
                }  # fmt: skip


def _edits(everyone: list[str]) -> Any:
    who = {"part": "extended", "protocol": "newAcq", "structure": "Rectum"}
    for patient, step, observer in product(everyone, STEPS, OBSERVERS):
        about = who | {"patient_id": patient, "step": step, "observer": observer}
        for n in range(5):
            voxels = 0 if n == 4 else 100
            edited = 0 if n == 4 else 10 * (n + 1) // step
            yield about | {
                "estimate": "map", "bin_low": n / 10, "bin_high": (n + 1) / 10, "voxels": voxels,
                "inside_voxels": 0, "edited_voxels": edited, "added_voxels": edited,
                "removed_voxels": 0, "edit_rate": edited / voxels if voxels else None,
                "map_mean": None,
            }  # fmt: skip
        for k in range(11):
            yield about | {
                "estimate": "fold_mean", "bin_low": k / 10, "bin_high": k / 10, "voxels": 50,
                "inside_voxels": 5 * k, "edited_voxels": 0, "added_voxels": 0, "removed_voxels": 0,
                "edit_rate": 0.0, "map_mean": 0.01 * k,
            }  # fmt: skip


class TestStudy:
    def test_shifts_are_found_where_there_are_some(self, studied: lp.Cohort) -> None:
        study = lp.observer_study(studied)
        assert study.patients == PATIENTS
        dice = study.tests.query(
            "structure == 'Rectum' and measure == 'dice' and test == 'wilcoxon'"
        ).set_index("observer")
        assert list(dice.index) == [*OBSERVERS, "all"]
        assert (dice.n == PATIENTS).all()
        for observer, gain in GAIN.items():
            row = dice.loc[observer]
            assert row.difference_median == pytest.approx(gain, abs=2e-3)
            if gain:
                assert row.p == pytest.approx(2 / 2**PATIENTS)  # all of one sign
                assert row.p <= row.p_holm <= 5 * row.p
            else:
                assert np.isnan(row.p)
                assert np.isnan(row.p_holm)

    def test_tests_are_scipys_on_the_same_pairs(self, studied: lp.Cohort) -> None:
        study = lp.observer_study(studied, "CTVT_427", ["dice"])
        wide = studied.sql(
            "SELECT patient_id, b_step, avg(dice) AS dice FROM agreement "
            "WHERE structure = 'CTVT_427' AND pair = 'nnunet_observer' GROUP BY ALL"
        ).pivot(index="patient_id", columns="b_step", values="dice")
        tests = study.tests[study.tests.observer == "all"].set_index("test")
        expected = stats.wilcoxon(wide[2] - wide[1])
        assert tests.p["wilcoxon"] == pytest.approx(expected.pvalue)
        assert tests.p["fligner_killeen"] == pytest.approx(
            stats.fligner(wide[1], wide[2]).pvalue, rel=1e-4
        )
        assert tests.step2_median["wilcoxon"] == pytest.approx(wide[2].median())

    def test_holms_family_is_every_row_of_a_measure_and_test(self, studied: lp.Cohort) -> None:
        tests = lp.observer_study(studied, measures=["dice"]).tests
        for _, rows in tests.groupby(["structure", "measure", "test"]):
            known = rows.dropna(subset="p").sort_values("p")
            assert set(known.observer) >= {"all"}
            steps = known.p * np.arange(len(known), 0, -1)
            assert known.p_holm.tolist() == pytest.approx(steps.cummax().clip(upper=1).tolist())

    def test_patients_without_both_steps_are_left_out_of_that_row(self, studied: lp.Cohort) -> None:
        tests = lp.observer_study(studied, measures=["hd95_mm"]).tests
        assert (tests[tests.observer == "obsE"].n == 0).all()
        assert tests[tests.observer == "obsE"].p.isna().all()
        assert (tests[tests.observer == "obsB"].n == PATIENTS).all()

    def test_edits_and_calibration(self, studied: lp.Cohort) -> None:
        study = lp.observer_study(studied, "Rectum", ["edit_rate", "edited_voxels"])
        edits = study.edits.set_index(["bin_low", "step"])
        assert edits.edit_rate[0.3, 1] == pytest.approx(0.4)
        assert edits.edit_rate[0.3, 2] == pytest.approx(0.2)
        assert edits.edited_voxels[0.3, 1] == 40 * PATIENTS * 4
        assert np.isnan(edits.edit_rate[0.4, 1])
        rates = study.tests[study.tests.measure == "edit_rate_0.3_0.4"]
        assert rates.difference_median.tolist() == pytest.approx([-0.2] * 10)
        edited = study.tests[study.tests.measure == "edited_voxels"]
        assert (edited.difference_median == 10).all()
        calibration = study.calibration[study.calibration.step == 2].set_index("fold_mean")
        assert calibration.inside_rate[0.3] == pytest.approx(0.3)
        assert calibration.map_mean[0.5] == pytest.approx(0.05)
        assert calibration.disagreement[0.5] == pytest.approx(2 * 25 / 90)
        assert (calibration.folds == 10).all()

    def test_figures_are_saved_with_the_number_of_patients(
        self, studied: lp.Cohort, tmp_path: Path
    ) -> None:
        study = lp.observer_study(studied, "Rectum", ["dice"])
        written = study.save(tmp_path / "study")
        assert sorted(p.name for p in written) == [
            "agreement.png", "calibration.csv", "calibration.png", "edits.csv", "edits.png",
            "estimates.png", "tests.csv",
        ]  # fmt: skip
        assert all(p.stat().st_size for p in written)
        for figure in study.figures.values():
            assert "n = 12 patients" in figure.get_suptitle()
            assert all(axes.get_ylabel() for axes in figure.axes)
        pd.testing.assert_frame_equal(
            pd.read_csv(written[0]), study.tests, check_dtype=False, check_exact=False
        )

    def test_of_one_patient_there_is_no_p_but_a_study(self, cohort: lp.Cohort) -> None:
        study = lp.observer_study(cohort)
        assert study.patients == 1
        assert set(study.tests.n) <= {0, 1}
        assert len(study.figures) == 4
        assert "n = 1 patient)" in study.figures["edits"].get_suptitle()

    def test_mistakes(self, studied: lp.Cohort, cohort: lp.Cohort) -> None:
        with pytest.raises(UsageError, match="nearest: dice"):
            lp.observer_study(studied, measures=["dicee"])
        with pytest.raises(UnknownLabelError, match="base patients have none"):
            lp.observer_study(cohort.where("part = 'base'"))
        unmeasured = lp.Dataset(
            studied.location,
            studied.manifest.model_copy(
                update={
                    "tables": {
                        k: v
                        for k, v in studied.manifest.tables.items()
                        if k not in ("agreement", "uncertainty")
                    }
                }
            ),
        )
        with pytest.raises(UnknownLabelError, match="lundprobe-zarr measure"):
            lp.observer_study(lp.Cohort(unmeasured))
