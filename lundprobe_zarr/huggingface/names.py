"""Names under which `datasets` knows this package's builder and feature."""

from __future__ import annotations

#: Name of the builder for `datasets.load_dataset`.
BUILDER = "lundprobe"
#: Name of the feature in stored schemas. "Zarr" is upstream's.
FEATURE = "LundProbeVoxels"
