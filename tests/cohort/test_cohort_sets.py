"""Cohorts as sets of patients: what is read, counted, sliced, combined and shown."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.cohort import simulate
from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.errors import DatasetError, UnknownLabelError, UsageError


def test_opening_reads_the_manifest_and_the_patients_table(dataset: Path, reads: Any) -> None:
    with reads.counted() as names:
        cohort = open_cohort(dataset)
        assert len(cohort) == 4
        assert len(cohort.where("part = 'extended'")) == 1
    assert names[0] == "lundprobe.json"
    assert all(n.startswith(("metadata/patients", "metadata/cohort")) for n in names[1:])
    assert len(names) == len(set(names)) <= 3


def test_other_tables_are_read_once_for_all_cohorts_of_a_dataset(dataset: Path, reads: Any) -> None:
    cohort = open_cohort(dataset)
    with reads.counted() as names:
        first = cohort.where("Rectum.volume_cc > 0")
        assert names == []  # lazy: checked, not decided
        assert len(first) == 4
        assert {Path(n).parent.name for n in names} == {"structures"}
        names.clear()
        assert len(first.where("sct.Rectum.volume_cc > 0")) == 4
        assert names == []
        cohort.sql("SELECT count(*) FROM slices")
        first.sql("SELECT count(*) FROM slices")
        assert len(names) == 2  # a file a part


def test_a_patient_is_found_by_id_and_by_number(phantom: Cohort) -> None:
    ids = phantom.ids
    assert [p.patient_id for p in phantom] == ids == list(phantom.patients.patient_id)
    assert phantom[0].patient_id == phantom[np.int64(0)].patient_id == phantom[ids[0]].patient_id
    assert phantom[-1].patient_id == ids[-1]


def test_an_unknown_patient_gets_the_nearest_id(phantom: Cohort) -> None:
    wrong = phantom.ids[2][:-1] + "x"
    with pytest.raises(UnknownLabelError, match=rf"no patient '{wrong}'.*{phantom.ids[2]}"):
        phantom[wrong]


def test_a_patient_of_the_dataset_but_not_of_the_cohort_is_said_to_be_so(phantom: Cohort) -> None:
    with pytest.raises(UnknownLabelError, match="in the dataset but not in this cohort of 1"):
        phantom[:1][phantom.ids[1]]


@pytest.mark.parametrize("number", [4, -5])
def test_a_number_beyond_the_end_is_an_index_error_too(phantom: Cohort, number: int) -> None:
    with pytest.raises(IndexError, match=f"number {number} in this cohort of 4"):
        phantom[number]


def test_slices_and_lists_of_ids_are_cohorts_in_table_order(phantom: Cohort) -> None:
    ids = phantom.ids
    assert phantom[1:3].ids == ids[1:3]
    assert phantom[::-2].ids == [ids[1], ids[3]]
    assert phantom[2:5].ids == ids[2:]
    assert phantom[[ids[3], ids[1], ids[3]]].ids == [ids[1], ids[3]]
    assert phantom[phantom.patients.patient_id[1:]].ids == ids[1:]
    assert len(phantom[[]]) == 0


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ([0, 2], "0, int"),
        ([True, False, True, True], "True, bool"),
        (np.array([1, 2]), "int64"),
        (np.array([True, False, True, True]), "bool"),
        (True, "True, bool"),
        (1.0, "1.0, float"),
        (None, "None, NoneType"),
    ],
)
def test_keys_that_are_no_ids_are_refused(phantom: Cohort, key: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"{said}.*expected a patient's id or number"):
        phantom[key]


def test_a_frame_of_patients_is_the_users_own(dataset: Path) -> None:
    cohort = open_cohort(dataset)
    before = cohort.patients
    mine = cohort.patients
    mine["patient_id"] = mine.patient_id[::-1].tolist()
    mine["part"] = "mine"
    pd.testing.assert_frame_equal(cohort.patients, before)
    assert cohort.patients.patient_id.tolist() == cohort.ids


def test_membership_by_id_and_by_patient(phantom: Cohort) -> None:
    first = phantom[:1]
    assert phantom.ids[0] in first
    assert phantom[0] in first
    assert phantom.ids[1] not in first
    assert phantom[1] not in first


def test_predicates_compose_like_and(phantom: Cohort) -> None:
    a, b = "protocol = 'newAcq'", "part = 'base' OR n_fiducials = 2"
    assert phantom.where(a).where(b).ids == phantom.where(f"({a}) AND ({b})").ids


def test_a_later_predicate_sees_only_patients_of_the_earlier(phantom: Cohort) -> None:
    numbers = "CASE WHEN part = 'base' THEN '1' ELSE 'one' END"
    assert len(phantom.where("part = 'base'").where(f"CAST({numbers} AS INTEGER) = 1")) == 3


def test_set_operations(many: Cohort) -> None:
    a, b = many.where("protocol = 'newAcq'"), many.where("missing_PenileBulb")
    for outcome, expected in (
        (a & b, set(a.ids) & set(b.ids)),
        (a | b, set(a.ids) | set(b.ids)),
        (a - b, set(a.ids) - set(b.ids)),
    ):
        assert set(outcome.ids) == expected != set()
        assert outcome.predicate is not None
        assert many.where(outcome.predicate).ids == outcome.ids


def test_set_operations_with_patients_chosen_by_hand(many: Cohort) -> None:
    a, b = many.where("protocol = 'newAcq'"), many[:100]
    assert (a & b).ids == [i for i in many.ids[:100] if i in a]
    assert (a & b).predicate is None
    assert (a & b).selection == ("[both of: protocol = 'newAcq' | [patients :100:]]",)


def test_a_difference_keeps_patients_for_whom_the_other_is_unknown(many: Cohort) -> None:
    large = many.where("PenileBulb.volume_cc > 0")
    rest = many - large
    assert set(rest.ids) == set(many.where("missing_PenileBulb").ids)
    assert many.where(rest.predicate or "").ids == rest.ids


def test_the_same_dataset_opened_twice_combines(simulated: Path, many: Cohort) -> None:
    again = open_cohort(simulated)
    assert (many[:10] & again[5:]).ids == many.ids[5:10]


def test_cohorts_of_two_datasets_do_not_combine(many: Cohort, phantom: Cohort) -> None:
    with pytest.raises(UsageError, match=r"patients 467, not 4.*combine cohorts of one dataset"):
        many & phantom
    with pytest.raises(TypeError):
        many & {"a"}  # type: ignore[operator]


def test_repr_says_who_of_what_and_why(many: Cohort) -> None:
    text = repr(many.where("part = 'extended'").where("n_fiducials > 0")[:7])
    assert "7 of 467 patients (7 extended newAcq) of " in text
    assert "where part = 'extended'\n  where n_fiducials > 0\n  where [patients :7:]" in text
    assert "(none)" in repr(many[:0])


def test_a_cohort_travels_to_another_process(phantom: Cohort) -> None:
    chosen = phantom.where("Rectum.volume_cc > 0 AND part = 'base'")
    again = pickle.loads(pickle.dumps(chosen))
    assert again.ids == chosen.ids
    assert again.selection == chosen.selection
    assert again[0].row == chosen[0].row
    assert again.sql("SELECT count(*) AS n FROM patients").n[0] == 3


def test_a_table_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    simulate(tmp_path, 20)
    for file in (tmp_path / "metadata" / "structures").iterdir():
        pq.write_table(pq.read_table(file).drop_columns("d95_gy"), file)
    cohort = open_cohort(tmp_path)
    assert len(cohort.where("Rectum.volume_cc > 0")) == 20
    with pytest.raises(DatasetError, match=r"structures/.*d95_gy"):
        len(cohort.where("Rectum.d95_gy > 0"))
    cohort.sql("FROM structures")
    with pytest.raises(DatasetError, match=r"table structures has no column d95_gy.*--rebuild"):
        len(cohort.where("Rectum.d95_gy > 0"))


def test_a_damaged_table_is_named(tmp_path: Path, simulated: Path) -> None:
    copy = shutil.copytree(simulated, tmp_path / "copy")
    (copy / "metadata/structures/base-00000.parquet").write_bytes(b"PAR1 no longer")
    cohort = open_cohort(copy)
    with pytest.raises(DatasetError, match=r"structures/base-00000\.parquet"):
        len(cohort.where("Rectum.volume_cc > 60"))


def test_importing_the_package_stays_light() -> None:
    program = (
        "import sys, lundprobe_zarr\n"
        "heavy = {'duckdb', 'pandas', 'xarray', 'pyarrow', 'zarr', 'numpy', 'torch', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), lundprobe_zarr.open_cohort.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "[] lundprobe_zarr.cohort.core\n", run.stderr


def test_the_same_patients_of_the_same_dataset_are_equal(phantom: Cohort, many: Cohort) -> None:
    again = open_cohort(phantom.location.url)
    assert again == phantom
    assert hash(again) == hash(phantom)
    assert phantom.where("true") == phantom[phantom.ids] == phantom, "however they were chosen"
    assert phantom[:2] != phantom
    assert phantom[:0] != many[:0], "nobody, of two datasets"
    assert phantom != phantom.ids
    assert again[0] == phantom[0]
    assert again[0] != phantom[1]
    assert len({again[0], phantom[0], phantom[1]}) == 2
    assert phantom[:2]._ipython_key_completions_() == phantom.ids[:2]
