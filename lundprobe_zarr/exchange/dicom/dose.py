"""The dose of the planning grid as RT Dose."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RTDoseStorage, RTPlanStorage

from lundprobe_zarr.exchange.dicom.header import Series, Study, add_pixels, add_plane, texts
from lundprobe_zarr.exchange.dicom.lattice import Planes
from lundprobe_zarr.exchange.dicom.uids import digest_of, uid
from lundprobe_zarr.exchange.dicom.values import dose_counts

_NUMBER = 20


def dose_instance(
    study: Study, planes: Planes, volume: npt.NDArray[Any]
) -> tuple[Dataset, dict[str, Any]]:
    """Return the RT Dose of a stored volume (z, y, x), Gy, and what was rounded.

    Raises `UsageError` for a dose that it cannot hold: see `values.dose_counts`.
    """
    stored = dose_counts(planes.ordered(volume), "dose/dose")
    digest = digest_of(stored.integers, planes.positions, np.array(planes.orientation))
    sizes = texts([planes.row_mm, planes.column_mm])
    series_uid = uid("dose", study.patient_id, digest, *sizes, stored.slope, str(study.precision))
    series = Series(_NUMBER, series_uid, "planned dose, planning grid")
    data = study.instance(RTDoseStorage, "RTDOSE", series, 1)
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = (
        f"{study.source('dose/dose')}: planned dose on the planning grid. Values are "
        f"multiples of the scaling; largest error {stored.max_abs_error:.3g} Gy."
    )
    data.OperatorsName = ""
    add_plane(data, planes, 0)
    add_pixels(data, stored.integers)
    data.NumberOfFrames = len(planes.positions)
    data.FrameIncrementPointer = Tag("GridFrameOffsetVector")
    data.GridFrameOffsetVector = texts([n * planes.step_mm for n in range(data.NumberOfFrames)])
    data.DoseUnits, data.DoseType = "GY", "PHYSICAL"
    data.DoseSummationType, data.DoseGridScaling = "PLAN", stored.slope
    data.ReferencedRTPlanSequence = [_plan(study)]
    rounding = {"dose_grid_scaling": stored.slope, "max_abs_error_gy": stored.max_abs_error}
    return data, rounding


def _plan(study: Study) -> Dataset:
    """Return a reference to the plan, which a dose has to have; the plan is not in LUND-PROBE."""
    plan = Dataset()
    plan.ReferencedSOPClassUID = RTPlanStorage
    plan.ReferencedSOPInstanceUID = uid("plan", study.patient_id)
    return plan
