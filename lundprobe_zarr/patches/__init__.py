"""Which patches an epoch has: location, order and content, without reading voxels.

Imports `cohort` and below. `lp.PatchStream` and the Hugging Face configurations read a `Plan`.
Start reading at plan.py.
"""

from lundprobe_zarr.patches.aggregate import Aggregator
from lundprobe_zarr.patches.lattice import Pad, lattice_of
from lundprobe_zarr.patches.order import Order, Share
from lundprobe_zarr.patches.plan import Item, Plan
from lundprobe_zarr.patches.prediction import Prediction
from lundprobe_zarr.patches.request import Content
from lundprobe_zarr.patches.sample import RawSample, Sample
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
    "GridSampling",
    "Item",
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
]
