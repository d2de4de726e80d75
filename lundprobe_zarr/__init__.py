"""LUND-PROBE as labelled, chunked, streamable Zarr with SQL cohort selection.

This module lists the public names. Heavy libraries are imported only when a name needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.huggingface.registration import register_on_import, register_with_datasets
from lundprobe_zarr.stores.extensions import extend_cohorts, extend_trees
from lundprobe_zarr.vocabulary.version import package_version

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import (
        Cohort,
        Patient,
        Splits,
        load_cohort,
        load_splits,
        open_cohort,
    )
    from lundprobe_zarr.dataset.dataset import Dataset
    from lundprobe_zarr.exchange.cohort import CohortExport, export_nifti
    from lundprobe_zarr.geometry.common_grid import CommonGrid
    from lundprobe_zarr.huggingface.loading import load_dataset
    from lundprobe_zarr.labelled.accessor import Region, accessor, to_xarray
    from lundprobe_zarr.labelled.agreement import agreement, compare_masks
    from lundprobe_zarr.labelled.consensus import consensus, fold_uncertainty
    from lundprobe_zarr.labelled.dvh import dvh
    from lundprobe_zarr.labelled.label_map import LabelMap, label_map
    from lundprobe_zarr.labelled.plan_check import plan_check
    from lundprobe_zarr.labelled.predictions import (
        Predictions,
        open_predictions,
        write_prediction,
    )
    from lundprobe_zarr.labelled.study import ObserverStudy, observer_study
    from lundprobe_zarr.patches import (
        Aggregator,
        BalancedSampling,
        CentredSampling,
        GridSampling,
        Prediction,
        Sample,
        SliceSampling,
        UniformSampling,
    )
    from lundprobe_zarr.phantom import write_phantom
    from lundprobe_zarr.quality.check import QualityReport, qc
    from lundprobe_zarr.quality.paper import check_against_paper
    from lundprobe_zarr.stream.monai import monai_dataset
    from lundprobe_zarr.stream.stream import PatchStream
    from lundprobe_zarr.stream.torch import to_monai, to_torchio, torch_dataset
    from lundprobe_zarr.stream.torchio import torchio_subjects

__all__ = [
    "Aggregator",
    "BalancedSampling",
    "CentredSampling",
    "Cohort",
    "CohortExport",
    "CommonGrid",
    "Dataset",
    "GridSampling",
    "LabelMap",
    "LundProbeError",
    "ObserverStudy",
    "PatchStream",
    "Patient",
    "Prediction",
    "Predictions",
    "QualityReport",
    "Region",
    "Sample",
    "SliceSampling",
    "Splits",
    "UniformSampling",
    "accessor",
    "agreement",
    "check_against_paper",
    "compare_masks",
    "consensus",
    "dvh",
    "export_nifti",
    "fold_uncertainty",
    "label_map",
    "load_cohort",
    "load_dataset",
    "load_splits",
    "monai_dataset",
    "observer_study",
    "open_cohort",
    "open_predictions",
    "plan_check",
    "qc",
    "register_with_datasets",
    "to_monai",
    "to_torchio",
    "to_xarray",
    "torch_dataset",
    "torchio_subjects",
    "write_phantom",
    "write_prediction",
]
__version__ = package_version()

_COHORT = ("Cohort", "Patient", "Splits", "load_cohort", "load_splits", "open_cohort")
_LAZY = dict.fromkeys(_COHORT, "lundprobe_zarr.cohort")
_LABELLED = ("Region", "accessor", "to_xarray")
_LAZY |= dict.fromkeys(_LABELLED, "lundprobe_zarr.labelled.accessor")
_LAZY["dvh"] = "lundprobe_zarr.labelled.dvh"
_LAZY |= dict.fromkeys(("LabelMap", "label_map"), "lundprobe_zarr.labelled.label_map")
_LAZY["plan_check"] = "lundprobe_zarr.labelled.plan_check"
_PREDICTIONS = ("Predictions", "open_predictions", "write_prediction")
_LAZY |= dict.fromkeys(_PREDICTIONS, "lundprobe_zarr.labelled.predictions")
_AGREEMENT = ("agreement", "compare_masks")
_LAZY |= dict.fromkeys(_AGREEMENT, "lundprobe_zarr.labelled.agreement")
_CONSENSUS = ("consensus", "fold_uncertainty")
_LAZY |= dict.fromkeys(_CONSENSUS, "lundprobe_zarr.labelled.consensus")
_STUDY = ("ObserverStudy", "observer_study")
_LAZY |= dict.fromkeys(_STUDY, "lundprobe_zarr.labelled.study")
_LAZY |= dict.fromkeys(("CohortExport", "export_nifti"), "lundprobe_zarr.exchange.cohort")
_LAZY["CommonGrid"] = "lundprobe_zarr.geometry.common_grid"
_LAZY["Dataset"] = "lundprobe_zarr.dataset.dataset"
_PATCHES = (
    "Aggregator", "BalancedSampling", "CentredSampling", "GridSampling", "Prediction", "Sample",
    "SliceSampling", "UniformSampling",
)  # fmt: skip
_LAZY |= dict.fromkeys(_PATCHES, "lundprobe_zarr.patches")
_LAZY["PatchStream"] = "lundprobe_zarr.stream.stream"
_TORCH = ("to_monai", "to_torchio", "torch_dataset")
_LAZY |= dict.fromkeys(_TORCH, "lundprobe_zarr.stream.torch")
_LAZY["monai_dataset"] = "lundprobe_zarr.stream.monai"
_LAZY["torchio_subjects"] = "lundprobe_zarr.stream.torchio"
_LAZY["write_phantom"] = "lundprobe_zarr.phantom"
_LAZY |= dict.fromkeys(("QualityReport", "qc"), "lundprobe_zarr.quality.check")
_LAZY["check_against_paper"] = "lundprobe_zarr.quality.paper"
_LAZY["load_dataset"] = "lundprobe_zarr.huggingface.loading"
extend_trees("lundprobe_zarr.labelled.accessor")  # registers `.lp` when the first tree is opened
extend_cohorts("to_xarray", "lundprobe_zarr.labelled.accessor")
extend_cohorts("to_hf", "lundprobe_zarr.huggingface.loading")
extend_cohorts("view", "lundprobe_zarr.service.notebook")
extend_cohorts("patient_card", "lundprobe_zarr.figures.patient_card")
register_on_import()  # `load_dataset("lundprobe", …)`, once datasets is imported


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
