"""Cohorts and patients: selection with SQL, splits, saved files, lazy labelled data.

Imports `sql` and below.
Start reading at core.py.
"""

from __future__ import annotations

from lundprobe_zarr.cohort.core import Cohort, load_cohort, load_splits, open_cohort
from lundprobe_zarr.cohort.patient import Patient
from lundprobe_zarr.cohort.splits import Fold, Splits

__all__ = ["Cohort", "Fold", "Patient", "Splits", "load_cohort", "load_splits", "open_cohort"]
