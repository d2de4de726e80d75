"""Coarser levels: right, in their place, checked, copied, and taken for data by nobody."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from altered import rewrite
from trees import NEW, OLD, Workplace, snapshot, write_patient

import lundprobe_zarr as lp
from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.repair import find_damage, repair
from lundprobe_zarr.conversion.run.compatibility import require_compatible
from lundprobe_zarr.conversion.source.inventory import take_inventory, with_coarser_levels
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import DamagedStoreError, DatasetError, UsageError
from lundprobe_zarr.geometry.coarser import coarser
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.levels import MOST_LEVELS
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store

ome_zarr_models = pytest.importorskip("ome_zarr_models.v05")
yaozarrs = pytest.importorskip("yaozarrs")

GROUPS = ("mri", "mri/clinical", "mri/nnunet", "sct", "sct/clinical", "dose")


def convert_with(source: Path, dataset: Path, levels: int) -> None:
    for patient in with_coarser_levels(take_inventory(source), levels).patients:
        result = convert_patient(patient, dataset, "standard")
        assert result.error is None, result.error
    finalise(dataset)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Workplace]:
    """A whole extended patient, converted without levels and with two. Read-only."""
    home = tmp_path_factory.mktemp("levels")
    write_patient(home / "source", part="extended")
    for levels in (0, 2):
        convert_with(home / "source", home / f"d{levels}", levels)
    a, b = (Workplace(home / "source", home / f"d{n}", part="extended") for n in (0, 2))
    return a, b


@pytest.fixture
def levelled(pair: tuple[Workplace, Workplace], tmp_path: Path) -> Workplace:
    """A copy of the dataset with two levels, to damage."""
    shutil.copytree(pair[1].dataset, tmp_path / "d")
    return Workplace(pair[1].source, tmp_path / "d", part="extended")


def test_levels_are_what_level_0_makes_of_them_at_their_place(
    pair: tuple[Workplace, Workplace],
) -> None:
    store = pair[1].store
    tree = lp.open_cohort(pair[1].dataset)[NEW].tree
    seen = 0
    for group in GROUPS:
        whole = tree[group]
        for level in (1, 2):
            with xr.open_zarr(store / group / f"levels/{level}") as made:
                assert made.attrs["derived_from"] == f"/{group}"
                for name, array in made.data_vars.items():
                    assert array.attrs["derived_from"] == f"/{group}/{name}"
                    assert "sources" not in array.attrs
                    step = 1.0 if name == "image" else 2.0**-10
                    source = whole[str(name)].values.reshape(-1, *whole[str(name)].shape[-3:])
                    expected = np.stack([coarser(v, level, step) for v in source])
                    np.testing.assert_array_equal(array.values.reshape(expected.shape), expected)
                    assert array.dtype == whole[str(name)].dtype
                    seen += 1
                for axis in "yx":
                    covered = whole[axis].values[: 2**level]
                    assert made[axis].values[0] == pytest.approx(covered.mean(), abs=1e-9)
                    step = np.diff(made[axis].values)
                    assert step == pytest.approx(2**level * np.diff(whole[axis].values)[0])
                np.testing.assert_array_equal(made.z, whole.z)
    assert seen == 2 * 10


def test_metadata_of_ome_name_them_and_the_models_take_them(
    pair: tuple[Workplace, Workplace],
) -> None:
    for group in GROUPS:
        place = pair[1].store / group
        opened = zarr.open_group(place, mode="r")
        ome_zarr_models.Image.from_zarr(opened)
        yaozarrs.validate_zarr_store(str(place))
        for multiscale in opened.attrs["ome"]["multiscales"]:  # type: ignore[index,union-attr,call-overload]
            name = multiscale["name"]  # type: ignore[index,call-overload]
            assert multiscale["type"] == ("majority" if "mask" in str(name) else "mean")  # type: ignore[index,call-overload]
            for level, dataset in enumerate(multiscale["datasets"]):  # type: ignore[index,call-overload,arg-type]
                assert dataset["path"] == (f"levels/{level}/{name}" if level else name)
                array = opened[dataset["path"]]
                scale, translation = dataset["coordinateTransformations"]
                parent = (place / dataset["path"]).parent
                with xr.open_zarr(parent if level else pair[1].store / group.split("/")[0]) as grid:
                    for n, axis in enumerate("zyx", -3):
                        places = np.arange(array.shape[n]) * scale["scale"][n]  # type: ignore[union-attr]
                        places += translation["translation"][n]
                        np.testing.assert_allclose(places, grid[axis].values, atol=1e-9)


def test_nobody_takes_them_for_data(pair: tuple[Workplace, Workplace]) -> None:
    bare, levelled = pair
    trees = [lp.open_cohort(w.dataset)[NEW].tree for w in pair]
    assert trees[0].groups == trees[1].groups
    for node in trees[0].subtree:
        other = trees[1][node.path]
        if node.path == "/":
            assert set(other.attrs) - set(node.attrs) == {"levels"}
        else:
            xr.testing.assert_identical(node.to_dataset(), other.to_dataset())
    for group in (None, "mri"):
        with (
            xr.open_datatree(bare.store, engine="zarr", group=group) as a,
            xr.open_datatree(levelled.store, engine="zarr", group=group) as b,
        ):
            assert a.groups == b.groups
            for node in a.subtree:
                assert set(node.variables) == set(b[node.path].variables)
    a, b = (open_manifest(Location(w.dataset)) for w in pair)
    assert a.content == b.content
    assert (a.levels, b.levels) == (0, 2)
    stores = [open_store(Location(w.dataset), NEW) for w in pair]
    assert [r for _, r in stores[0].records] == [r for _, r in stores[1].records]
    assert [s.level_count for s in stores] == [0, 2]


def test_validate_looks_at_them(levelled: Workplace) -> None:
    place = Location(levelled.dataset)
    assert validate(place, deep=True).problems == ()
    shard = levelled.store / "mri/levels/2/image/c/1/0/0/0"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    (problem,) = validate(place).problems
    assert "levels/2/image" in problem.where
    assert problem.patient_id == NEW
    shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert validate(place).problems == ()
    (problem,) = validate(place, deep=True).problems
    assert "differ from those written at conversion" in problem.finding
    shard.unlink()
    assert "not there" in validate(place).problems[0].finding


def test_validate_computes_them_again(levelled: Workplace) -> None:
    """Shards that changed places pass every checksum."""
    one, other = (levelled.store / f"mri/levels/1/image/c/{n}/0/0/0" for n in (0, 1))
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    a, b = (f"mri/levels/1/image/c/{n}/0/0/0" for n in (0, 1))

    def swap(root: dict[str, Any]) -> None:
        levels = json.loads(root["attributes"]["levels"])
        shards = levels["shards"]
        shards[a], shards[b] = shards[b], shards[a]
        root["attributes"]["levels"] = json.dumps(levels)

    rewrite(levelled.store / "zarr.json", swap)
    found = validate(Location(levelled.dataset), deep=True).problems
    wrong = [
        p.where.partition(".zarr/")[2] for p in found if "those computed from level 0" in p.finding
    ]
    assert wrong == [a, b]


def test_repair_writes_them_again(levelled: Workplace) -> None:
    before = {n: h for n, h in snapshot(levelled.store).items() if "/c/" in n}
    (levelled.store / "mri/levels/1/dose/c/0/0/0").unlink()
    damage = find_damage(Location(levelled.dataset))
    assert damage.levels == 2
    done = repair(take_inventory(levelled.source), Location(levelled.dataset), damage)
    assert (done.left, done.changed) == ((), ())
    assert {n: h for n, h in snapshot(levelled.store).items() if "/c/" in n} == before


def test_copy_takes_them_along(pair: tuple[Workplace, Workplace], tmp_path: Path) -> None:
    copy_dataset(Location(pair[1].dataset), Location(tmp_path / "copy"))
    copied = snapshot(tmp_path / "copy/patients")
    assert copied == snapshot(pair[1].dataset / "patients")
    assert any("/levels/2/" in name for name in copied)


def test_they_survive_an_upgrade(levelled: Workplace) -> None:
    before = snapshot(levelled.store)
    rewrite(levelled.store / "zarr.json", without_ome)
    assert finalise(levelled.dataset, rebuild=True).upgraded == (NEW,)
    assert snapshot(levelled.store) == before
    assert validate(Location(levelled.dataset), deep=True).problems == ()


def without_ome(root: dict[str, Any]) -> None:
    root["attributes"].pop("ome_version")
    root["attributes"].pop("t2w_window")


def test_numbers_that_make_no_sense(
    pair: tuple[Workplace, Workplace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pair[0].source
    for levels in (-1, MOST_LEVELS + 1):
        with pytest.raises(UsageError, match=f"--levels {levels}; expected a number from 0"):
            with_coarser_levels(take_inventory(source), levels)
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(source), str(tmp_path / "d"), "--levels", str(levels)])
        assert ended.value.code == 2
        assert f"--levels {levels}" in capsys.readouterr().err
    (patient,) = with_coarser_levels(take_inventory(source), 3).patients
    result = convert_patient(patient, tmp_path / "d", "standard")
    assert result.status == "failed"
    assert "--levels 3: a slice of 6×7 voxels has none left when halved so" in str(result.error)
    assert "expected at most 2" in str(result.error)
    assert not list(tmp_path.glob("d/patients/[!.]*"))


def test_a_dataset_has_one_number_of_levels(
    pair: tuple[Workplace, Workplace], tmp_path: Path
) -> None:
    inventory = take_inventory(pair[0].source)
    for work, levels, said in (
        (pair[0], 2, "with no coarser levels, not with 2.*leave out --levels"),
        (pair[1], 0, "with 2 coarser levels, not with none.*give --levels 2"),
    ):
        wanted = with_coarser_levels(inventory, levels)
        with pytest.raises(UsageError, match=said):
            require_compatible(wanted, Location(work.dataset), "standard", False)
        require_compatible(wanted, Location(work.dataset), "standard", True)
    shutil.copytree(pair[1].dataset, tmp_path / "d")
    write_patient(tmp_path / "s", OLD, only=("MR_StorT2/image.nii.gz", "sCT/image.nii.gz"))
    (other,) = take_inventory(tmp_path / "s").patients
    assert convert_patient(other, tmp_path / "d", "standard").error is None
    with pytest.raises(DatasetError, match=r"standard with --levels 2 \(1\)") as raised:
        finalise(tmp_path / "d")
    assert raised.value.command is not None
    assert convert_patient(replace(other, levels=2), tmp_path / "d", "standard").error is None
    assert finalise(tmp_path / "d").manifest.levels == 2


@pytest.mark.parametrize(
    "levels",
    [
        {"count": 0, "shards": {}},
        {"count": 99, "shards": {}},
        {"count": 1, "shards": {"x": [1]}},
        {"count": 1, "shards": {"x": [-1, "0" * 64]}},
        {"count": 1, "shards": {"x": [1, "../.."]}},
        [],
    ],
)
def test_an_attribute_that_is_none_of_ours_is_damage(levelled: Workplace, levels: Any) -> None:
    def change(root: dict[str, Any]) -> None:
        root["attributes"]["levels"] = json.dumps(levels)

    rewrite(levelled.store / "zarr.json", change)
    with pytest.raises(DamagedStoreError, match="not the metadata of a complete store"):
        open_store(Location(levelled.dataset), NEW)
