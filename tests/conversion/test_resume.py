"""What is skipped, what is converted again, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from trees import FIDUCIALS, MRI, NEW, OLD, SCT, Workplace, convert_tree, snapshot, write_patient

from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.state import is_current
from lundprobe_zarr.conversion.run.cluster import _local_cluster
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import (
    Inventory,
    PatientSource,
    select,
    take_inventory,
)
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.integrity.foreign import foreign_files
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT

MASK = "MR_StorT2/mask_Rectum.nii.gz"
CSV = "patGeometryInformation_basePart.csv"


def source_of(work: Workplace) -> PatientSource:
    return next(p for p in take_inventory(work.source).patients if p.patient_id == NEW)


def current(work: Workplace, precision: Precision = "standard") -> bool:
    return is_current(work.dataset, source_of(work), precision)


def state_file(work: Workplace) -> Path:
    return work.dataset / ".conversion" / f"{NEW}.json"


def settle(work: Workplace) -> None:
    """Convert the copy, whose times differ from those of the original it was made from."""
    assert work.convert_one().error is None


def touch(path: Path, later_by_s: float = 5) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(later_by_s * 1e9)))


def test_an_unchanged_patient_is_skipped_in_milliseconds(work: Workplace) -> None:
    settle(work)
    patient = source_of(work)
    before = snapshot(work.dataset)
    started = time.perf_counter()
    assert all(is_current(work.dataset, patient, "standard") for _ in range(20))
    assert (time.perf_counter() - started) / 20 < 0.05
    assert snapshot(work.dataset) == before


def test_a_run_over_unchanged_patients_changes_no_store(work: Workplace) -> None:
    shutil.rmtree(work.source / "basePart" / OLD)
    settle(work)
    before = snapshot(work.dataset / "patients")
    report = convert(take_inventory(work.source), work.dataset)
    assert [r.status for r in report.results] == ["skipped"]
    assert snapshot(work.dataset / "patients") == before
    assert (work.dataset / "lundprobe.json").is_file()


def test_a_store_whose_root_is_damaged_is_converted_again_whatever_the_notes_say(
    work: Workplace,
) -> None:
    shutil.rmtree(work.source / "basePart" / OLD)
    settle(work)
    before = finalise(work.dataset).manifest.content
    root = work.store / "zarr.json"
    for damaged in (b"{", b"", root.read_bytes().replace(b'"base"', b'"bade"')):
        root.write_bytes(damaged)
        report = convert(take_inventory(work.source), work.dataset)
        assert [r.status for r in report.results] == ["converted"]
        assert report.left_out == ()
        assert finalise(work.dataset).manifest.content == before


def test_contents_that_size_and_time_do_not_show_are_seen_by_their_hashes(work: Workplace) -> None:
    settle(work)
    file = work.folder / MASK
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert current(work)
    assert not is_current(work.dataset, source_of(work), "standard", checksum=True)
    file.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    assert is_current(work.dataset, source_of(work), "standard", checksum=True)


def test_a_store_that_nobody_can_read_ends_the_command_with_its_own_status(
    work: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    settle(work)
    stranger = work.dataset / "patients" / "newAcq_00000000000000aa.zarr"
    shutil.copytree(work.store, stranger)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(work.source), str(work.dataset)])
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert f"the store of patient {NEW}, not of this one" in said.out + said.err
    assert f"If there is no such patient, move the store away: {stranger}" in said.out + said.err


def test_a_changed_time_alone_does_not_convert_again(work: Workplace) -> None:
    settle(work)
    noted = state_file(work).read_text()
    for path in (MRI, FIDUCIAL_TEXT):
        touch(work.folder / path)
    assert current(work)
    assert state_file(work).read_text() != noted, "the new times are noted"


@pytest.mark.parametrize("path", [MASK, FIDUCIAL_TEXT])
def test_changed_contents_of_the_same_size_convert_again(work: Workplace, path: str) -> None:
    settle(work)
    data = bytearray((work.folder / path).read_bytes())
    data[-1] ^= 1
    (work.folder / path).write_bytes(bytes(data))
    touch(work.folder / path)
    assert not current(work)


@pytest.mark.parametrize("path", [MASK, FIDUCIAL_TEXT])
def test_a_removed_file_converts_again_and_so_does_its_return(work: Workplace, path: str) -> None:
    settle(work)
    data = (work.folder / path).read_bytes()
    (work.folder / path).unlink()
    assert not current(work)
    settle(work)
    assert current(work)
    (work.folder / path).write_bytes(data)
    assert not current(work)


def test_a_changed_text_reaches_the_store(work: Workplace) -> None:
    import xarray as xr

    settle(work)
    (work.folder / FIDUCIAL_TEXT).write_text(FIDUCIALS.replace("0.5", "0.7"))
    assert not current(work)
    settle(work)
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        assert float(clinical.fiducial_position[1, 0]) == 0.7


def change_geometry(source: Path) -> None:
    (source / CSV).write_text((source / CSV).read_text().replace("(8, 9, 5)", "(8, 9, 6)"))


def change_missing(source: Path) -> None:
    (source / "missingStructures_basePart.json").write_text(f'{{"{NEW}": ["Bladder"]}}')


def change_components(source: Path) -> None:
    file = source / "StructuresMoreThan1ConComp_basePart.txt"
    file.write_text(f"{NEW}/MR_StorT2/mask_Bladder.nii.gz")


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "lost-state"])
@pytest.mark.parametrize("change", [change_geometry, change_missing, change_components])
def test_a_side_file_that_says_otherwise_converts_again(
    work: Workplace, change: object, with_state: bool
) -> None:
    settle(work)
    change(work.source)  # type: ignore[operator]
    if not with_state:
        state_file(work).unlink()
    assert not current(work)
    settle(work)
    if not with_state:
        state_file(work).unlink()
    assert current(work)


def test_an_absence_that_is_listed_later_converts_again_even_without_state(
    work: Workplace,
) -> None:
    for grid in ("MR_StorT2", "sCT"):
        (work.folder / grid / "mask_PenileBulb.nii.gz").unlink()
    settle(work)
    state_file(work).unlink()
    listing = f'{{"{NEW}": ["PenileBulb"]}}'
    (work.source / "missingStructures_basePart.json").write_text(listing)
    assert not current(work), "its store still says that the absence is not listed"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"files": 3}', '{"side": null}'])
def test_a_damaged_state_file_is_not_trusted(work: Workplace, text: str) -> None:
    settle(work)
    state_file(work).write_text(text)
    data = bytearray((work.folder / MASK).read_bytes())
    data[4] ^= 1  # gzip's time: harmless, and yet another file
    status = (work.folder / MASK).stat()
    (work.folder / MASK).write_bytes(bytes(data))
    os.utime(work.folder / MASK, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not current(work)


def test_a_lost_state_file_costs_a_look_at_every_file_and_no_conversion(work: Workplace) -> None:
    settle(work)
    noted = json.loads(state_file(work).read_text())
    state_file(work).unlink()
    assert current(work)
    assert json.loads(state_file(work).read_text()) == noted


def test_state_without_its_store_is_not_trusted(work: Workplace) -> None:
    settle(work)
    shutil.rmtree(work.store)
    assert not current(work)


@pytest.mark.parametrize("text", ["", "{}", '{"attributes": {}}'])
def test_a_store_whose_metadata_is_torn_is_not_trusted(work: Workplace, text: str) -> None:
    settle(work)
    (work.store / "zarr.json").write_text(text)
    state_file(work).unlink()
    assert not current(work)


def test_a_run_converts_a_torn_store_again_and_publishes(work: Workplace) -> None:
    (work.store / "zarr.json").write_text("")
    state_file(work).unlink()
    inventory = select(take_inventory(work.source), [NEW])
    report = convert(inventory, work.dataset)
    assert [r.status for r in report.results] == ["converted"]
    assert validate(Location(work.dataset), deep=True).problems == ()


def test_a_file_that_cannot_be_read_is_left_to_the_conversion_to_report(work: Workplace) -> None:
    settle(work)
    touch(work.folder / MASK)
    patient = source_of(work)
    (work.folder / MASK).unlink()
    assert not is_current(work.dataset, patient, "standard")
    assert convert_patient(patient, work.dataset, "standard").status == "failed"


def test_another_precision_is_refused_and_changes_nothing(work: Workplace) -> None:
    before = snapshot(work.dataset)
    with pytest.raises(UsageError, match=r"precision standard, not compact; choose --precision"):
        convert(take_inventory(work.source), work.dataset, Options(precision="compact"))
    assert snapshot(work.dataset) == before
    assert not current(work, "compact")


def test_destinations_that_overlap_the_source_are_refused(work: Workplace, tmp_path: Path) -> None:
    inventory = take_inventory(work.source)
    for destination in (work.source, work.source / "zarr", tmp_path):
        with pytest.raises(UsageError, match="overlap; expected separate folders"):
            convert(inventory, destination)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a folder or nothing"):
        convert(inventory, tmp_path / "file")
    with pytest.raises(UsageError, match=r"below: .*file is a file; expected a folder"):
        convert(inventory, tmp_path / "file" / "deep" / "below")
    with pytest.raises(UsageError, match="expected at least 1"):
        convert(inventory, work.dataset, Options(workers=0))
    with pytest.raises(UsageError, match="expected one of"):
        convert(inventory, work.dataset, Options(precision="exact"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "catalog.yaml", "croissant.json", "lundprobe.json"),
        *("metadata/patients.parquet", "metadata/slices/mine.parquet"),
    ],
)
def test_what_is_no_datasets_is_not_replaced(work: Workplace, tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    (project / name).parent.mkdir(parents=True)
    (project / name).write_text("mine")
    inventory = take_inventory(work.source)
    with pytest.raises(UsageError, match=rf"no dataset and has {name}.*move these away"):
        convert(inventory, project)
    assert list(snapshot(project)) == [name]
    assert (project / name).read_text() == "mine"


def test_only_tables_of_ours_are_removed_when_they_are_stale(work: Workplace) -> None:
    settle(work)
    (work.dataset / "metadata" / "mine").mkdir(parents=True)
    mine = work.dataset / "metadata" / "mine" / "notes.parquet"
    stale = work.dataset / "metadata" / "slices" / "extended-00007.parquet"
    finalise(work.dataset)
    for file in (mine, stale):
        file.write_text("")
    finalise(work.dataset)
    assert mine.exists()
    assert not stale.exists()


def test_a_dataset_is_known_by_its_notes_its_stores_or_its_manifest(work: Workplace) -> None:
    settle(work)
    finalise(work.dataset)
    place = Location(work.dataset)
    assert foreign_files(place) == []
    shutil.rmtree(work.dataset / ".conversion")
    assert foreign_files(place) == []
    shutil.rmtree(work.dataset / "patients")
    assert foreign_files(place) == []
    (work.dataset / "lundprobe.json").unlink()
    tables = [f"metadata/{n}" for n in sorted(place.find("metadata"))]
    side = ["README.md", "catalog.yaml", "croissant.json"]
    assert sorted(foreign_files(place)) == sorted([*side, *tables])


def test_workers_log_no_errors_of_their_own_and_are_not_profiled() -> None:
    def shown() -> list[int]:
        return [handler.level for handler in logging.getLogger("distributed").handlers]

    def callbacks(dask_worker: Any) -> list[str]:
        return list(dask_worker.periodic_callbacks)

    with _local_cluster(1, 1) as cluster, Client(cluster) as client:
        (levels,) = client.run(shown).values()
        (repeated,) = client.run(callbacks).values()
    assert levels
    assert set(levels) == {logging.CRITICAL}
    assert "heartbeat" in repeated
    assert "profile" not in repeated


def test_a_part_that_fails_leaves_the_store_and_state_of_before(work: Workplace) -> None:
    settle(work)
    before = snapshot(work.dataset)
    (work.folder / MRI).write_bytes(b"broken")
    assert work.convert_one().status == "failed"
    assert snapshot(work.dataset) == before


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    source = tmp_path_factory.mktemp("crowd")
    for n in range(11):
        part = "extended" if n % 4 == 0 else "base"
        write_patient(source, f"newAcq_{n:016x}", part, only=(MRI, SCT))
    return take_inventory(source)


@pytest.mark.parametrize("shares", [1, 2, 3, 5, 11, 20])
def test_the_shares_of_a_job_array_are_a_partition(crowd: Inventory, shares: int) -> None:
    parts = [select(crowd, part=(n, shares)).patients for n in range(1, shares + 1)]
    together = [p.patient_id for part in parts for p in part]
    assert sorted(together) == sorted(p.patient_id for p in crowd.patients)
    assert len(set(together)) == len(together)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("share", [(0, 3), (4, 3), (-1, 3), (1, 0)])
def test_a_share_that_cannot_be_is_refused(crowd: Inventory, share: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"expected i/N with 1 <= i <= N"):
        select(crowd, part=share)


def test_a_patient_that_is_not_there_is_refused_by_name(crowd: Inventory) -> None:
    with pytest.raises(UsageError, match=f"no patient {OLD} in .*holds 11, such as newAcq_"):
        select(crowd, [OLD])


def test_shares_converted_one_by_one_make_the_whole_dataset(
    crowd: Inventory, tmp_path: Path
) -> None:
    for n in (1, 2, 3):
        for patient in select(crowd, part=(n, 3)).patients:
            assert convert_patient(patient, tmp_path / "shares", "standard").error is None
    whole = convert_tree(crowd.root, tmp_path / "whole")
    names = {p.name for p in (tmp_path / "shares" / "patients").iterdir()}
    assert names == {f"{p}.zarr" for p in whole}
