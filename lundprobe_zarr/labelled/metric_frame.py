"""`frame.lp` on a pandas DataFrame: says what a table of metrics is not.

Imported, and so registered, when a table of metrics is made.
"""

from __future__ import annotations

from typing import Any, NoReturn

import pandas as pd

from lundprobe_zarr.errors import UsageError


@pd.api.extensions.register_dataframe_accessor("lp")
class FrameAccessor:
    """`frame.lp`: refuses with a clear message what only labelled curves can do."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def plot_dvh(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse: a table has single values of each histogram, and no curve to draw.

        Raises
        ------
        UsageError
            Always, with the call that gives curves.
        """
        del arguments, options
        raise UsageError(
            "plot_dvh of a table of metrics, which has no curves",
            expected="the curves that lp.dvh(patient_or_cohort) returns without metrics=",
            remedy="call lp.dvh(...) without metrics=, then .lp.plot_dvh(); draw the metrics "
            "themselves with frame.plot",
        )
