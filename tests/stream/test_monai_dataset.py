"""`lp.monai_dataset` with MONAI itself: the same as its own reader, and through its tools."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.exchange.nifti import export_patient

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai")

from monai.data import (  # noqa: E402
    CacheDataset,
    DataLoader,
    Dataset,
    MetaTensor,
    PersistentDataset,
    SmartCacheDataset,
)
from monai.transforms import (  # noqa: E402
    Compose,
    Invertd,
    LoadImaged,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    SaveImaged,
    Spacingd,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
    "ignore:__array__ implementation:DeprecationWarning",  # of MONAI 1.5, under NumPy 2
)
KEYS, MODES = ("image", "mask"), ("bilinear", "nearest")
MASKS = ("CTVT_427", "Rectum")


def make(cohort: lp.Cohort, **changes):
    return lp.monai_dataset(cohort, **{"images": "T2w", "structures": MASKS} | changes)


def patches(samples: int = 2) -> list:
    """Deterministic and random spatial transforms, to patches of one size."""
    return [
        Spacingd(KEYS, (8, 8, 8), mode=MODES),
        Orientationd(KEYS, "RAS", labels=None),
        RandAffined(KEYS, prob=1, rotate_range=0.1, mode=MODES),
        RandCropByPosNegLabeld(KEYS, "mask", spatial_size=(16, 16, 8), num_samples=samples),
    ]


# MONAI makes a reader of DICOM too, which warns where pydicom is there without a decoder for GPUs.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
@pytest.mark.parametrize("part", ["base", "extended"])
def test_items_are_what_monai_loads_from_the_files(cohort, tmp_path, part):
    chosen = cohort.where(f"part = '{part}'")
    patient_id = chosen.ids[0]
    export_patient(chosen.location, patient_id, tmp_path)
    home = tmp_path / f"{part}Part" / patient_id
    files = {
        "image": [home / "MR_StorT2/image.nii.gz", home / "sCT/image_reg2MRI.nii.gz"],
        "mask": [home / f"MR_StorT2/mask_{s}.nii.gz" for s in MASKS],
        "dose": home / "MR_StorT2/dose_interpolated.nii.gz",
    }
    expected = LoadImaged(list(files), ensure_channel_first=True)(files)
    dataset = make(chosen, images=["T2w", "sCT"], dose=True)
    found = dataset[0]
    assert found["patient_id"] == patient_id
    for key in files:
        assert type(found[key]) is MetaTensor
        assert torch.equal(found[key].as_tensor().float(), expected[key].as_tensor())
        assert torch.equal(found[key].affine, expected[key].affine)
    assert found["image"].dtype == torch.float32
    assert found["mask"].dtype == torch.uint8
    assert dataset.channels == {"image": ("T2w", "sCT"), "mask": MASKS, "dose": ("dose",)}


def test_the_sct_grid_and_the_dose_grid(cohort):
    sct = lp.monai_dataset(cohort, structures="Rectum", grid="sct", dose=True)[0]
    patient = cohort[0]
    np.testing.assert_array_equal(sct["image"][0], patient.sct.image[0].values.T)
    np.testing.assert_array_equal(sct["mask"][0], patient.mask("Rectum", "sct").values.T)
    dose = lp.monai_dataset(cohort, grid="dose", dose=True)[0]
    np.testing.assert_array_equal(dose["dose"].affine, patient.dose.lp.affine)


def test_crop_and_spacing_are_those_of_the_accessor(cohort):
    found = make(cohort, spacing_mm=5, crop="PTVT_427", margin_mm=15)[1]
    patient = cohort[1]
    boxed = patient.mri.lp.resample(5).lp.crop("PTVT_427", patient, margin_mm=15)
    expected = boxed.image.sel(modality="T2w")
    np.testing.assert_allclose(found["image"][0], expected.values.T, rtol=2e-6, atol=1e-3)
    np.testing.assert_allclose(found["image"].affine, expected.lp.affine, rtol=0, atol=1e-9)


def test_masks_of_networks_and_observers(cohort):
    extended = cohort.where("part = 'extended'")
    dataset = make(
        extended, structures="Rectum", sources=["clinical", "nnunet", "nnunet_fold", "observer"],
        uncertainty=True,
    )  # fmt: skip
    found, patient = dataset[0], extended[0]
    assert dataset.channels["observer_mask"][0] == "Rectum 1 obsB"
    assert found["fold_mask"].shape[0] == 10
    assert found["observer_mask"].shape[0] == 8
    network = patient.nnunet.sel(structure="Rectum")
    np.testing.assert_array_equal(found["nnunet_mask"][0], network.mask.values.T)
    np.testing.assert_array_equal(found["uncertainty"][0], network.uncertainty.values.T)
    last = patient.observers.mask.sel(structure="Rectum", step=2, observer="obsE")
    np.testing.assert_array_equal(found["observer_mask"][-1], last.values.T)


def test_a_missing_structure_is_an_error_or_leaves_the_patient_out(cohort):
    lacking = cohort.where("missing_Genitalia").ids
    with pytest.raises(MissingStructureError, match=f"{lacking[0]}.*structure=Genitalia"):
        make(cohort, structures="Genitalia")
    dataset = make(cohort, structures="Genitalia", missing="skip")
    assert [d["patient_id"] for d in dataset.data] == [i for i in cohort.ids if i not in lacking]
    assert all(item["mask"].any() for item in dataset)
    with pytest.raises(MissingStructureError, match="3 of 4"):
        make(cohort, sources="nnunet")
    with pytest.raises(MissingStructureError, match="Genitalia to crop to"):
        make(cohort, crop="Genitalia")
    with pytest.raises(MissingStructureError, match="1 of 1"):
        make(cohort[lacking], structures="Genitalia", missing="skip")


def test_mistakes_are_named(cohort):
    with pytest.raises(UnknownLabelError, match="sources"):
        make(cohort, sources="nobody")
    with pytest.raises(UsageError, match="networks and observers segmented"):
        make(cohort, structures=["Bladder"], sources="nnunet")
    with pytest.raises(UsageError, match="'error' or 'skip'"):
        make(cohort, missing="zero")
    with pytest.raises(UsageError, match="a cohort"):
        lp.monai_dataset(cohort[0])


def test_no_voxel_is_read_before_it_is_asked_for(web):
    web.traffic.requests.clear()  # the server is that of other tests too
    dataset = make(web.cohort)
    assert not any("/c/" in r.path for r in web.traffic.requests if ".zarr" in r.path)
    web.traffic.requests.clear()
    dataset[0]
    assert any("/c/" in r.path for r in web.traffic.requests)


def test_caches_hold_what_is_read_once(cohort, tmp_path):
    dataset = make(cohort)
    steps = Compose([dataset.load, *patches()])
    cached = CacheDataset(dataset.data, steps, progress=False, num_workers=2)
    batch = next(iter(DataLoader(cached, batch_size=2)))
    assert batch["image"].shape == (4, 1, 16, 16, 8)
    assert CacheDataset(dataset, patches(), progress=False)[0][0]["mask"].shape == (2, 16, 16, 8)
    for _ in range(2):
        PersistentDataset(dataset.data, steps, cache_dir=tmp_path)[0]
        assert len(list(tmp_path.iterdir())) == 1
    PersistentDataset(make(cohort, dose=True).data, steps, cache_dir=tmp_path)[0]
    assert len(list(tmp_path.iterdir())) == 2, "other settings are another item"
    smart = SmartCacheDataset(
        dataset.data, steps, replace_rate=0.5, cache_num=2, progress=False, shuffle=False
    )
    smart.start()
    smart.update_cache()
    assert smart[0][0]["image"].shape == (1, 16, 16, 8)
    smart.shutdown()


@pytest.mark.parametrize(
    ("place", "context"),
    [("disk", "fork"), ("web", "fork"), ("web", "spawn")],
)
def test_workers_of_a_loader_read_the_same(request, cohort, place, context):
    near = make(cohort, spacing_mm=8, crop="PTVT_427", margin_mm=10)
    chosen = cohort if place == "disk" else request.getfixturevalue("web").cohort
    dataset = make(chosen, spacing_mm=8, crop="PTVT_427", margin_mm=10)
    dataset[0]  # the parent has read, too
    loader = DataLoader(dataset, batch_size=1, num_workers=1, multiprocessing_context=context)
    for batch, expected in zip(loader, near, strict=True):
        assert batch["patient_id"] == [expected["patient_id"]]
        assert torch.equal(batch["image"][0], expected["image"])
        assert torch.equal(batch["image"].affine[0], expected["image"].affine)


def test_a_dataset_can_be_pickled(cohort):
    dataset = pickle.loads(pickle.dumps(make(cohort)))
    assert torch.equal(dataset[2]["mask"], make(cohort)[2]["mask"])


def test_transforms_are_undone_and_saved_in_place(cohort, tmp_path):
    dataset = make(cohort, structures="Bladder")
    before = dataset[0]
    there = Compose(
        [
            dataset.load,
            Spacingd(KEYS, (4, 4, 4), mode=MODES),
            Orientationd(KEYS, "RAS", labels=None),
        ]
    )
    item = Dataset(dataset.data, there)[0]
    item["pred"] = item["mask"].clone()
    back = Invertd("pred", there, orig_keys="mask", nearest_interp=True)(item)["pred"]
    assert torch.allclose(back.affine, before["mask"].affine)
    agreed = 2 * (back.bool() & before["mask"].bool()).sum() / (back.sum() + before["mask"].sum())
    assert agreed > 0.99
    keys = {"back": back, "turned": item["image"]}
    for name, volume in keys.items():
        save = SaveImaged(
            name, output_dir=tmp_path, output_postfix=name, resample=False, separate_folder=False,
            print_log=False,
        )  # fmt: skip
        save({name: volume})
    patient_id = before["patient_id"]
    saved = nib.load(tmp_path / f"{patient_id}_mask_back.nii.gz")
    np.testing.assert_allclose(saved.affine, cohort[0].mri.image.lp.affine, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(saved.get_fdata(), back[0].numpy())
    turned = nib.load(tmp_path / f"{patient_id}_image_turned.nii.gz")
    np.testing.assert_allclose(turned.affine, item["image"].affine, rtol=0, atol=1e-5)
