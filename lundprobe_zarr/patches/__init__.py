"""Patches of a cohort's volumes: where they lie, in which order, and what they hold.

`Plan` puts it together for `lp.PatchStream` and for the Hugging Face configs.
"""

from lundprobe_zarr.patches.aggregate import Aggregator
from lundprobe_zarr.patches.order import Order, Share
from lundprobe_zarr.patches.patch import Pad, RawSample, lattice_of, read_patch
from lundprobe_zarr.patches.plan import Draw, Plan
from lundprobe_zarr.patches.prediction import Prediction
from lundprobe_zarr.patches.request import Content
from lundprobe_zarr.patches.sample import Sample
from lundprobe_zarr.patches.sampling import (
    BalancedSampling,
    CentredSampling,
    GridSampling,
    Sampling,
    SliceSampling,
    UniformSampling,
)

__all__ = [
    "Aggregator",
    "BalancedSampling",
    "CentredSampling",
    "Content",
    "Draw",
    "GridSampling",
    "Order",
    "Pad",
    "Plan",
    "Prediction",
    "RawSample",
    "Sample",
    "Sampling",
    "Share",
    "SliceSampling",
    "UniformSampling",
    "lattice_of",
    "read_patch",
]
