"""Datasets altered on purpose, as by someone who means it: with checksums that fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lundprobe_zarr.schema.document import CHECKSUM, add_checksum


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest or the root metadata of a store, and its checksum."""
    document = json.loads(file.read_text())
    change(document)
    add_checksum(document, document.get("attributes", document))
    file.write_text(json.dumps(document))


def forget_hashes(dataset: Path) -> None:
    """Let the manifest say nothing of the files of tables, as early versions' did."""
    rewrite(dataset / "lundprobe.json", lambda m: m.pop("table_sha256"))


def but_for_time(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a store without the time it was made, and its hash, which covers that."""
    attributes = {k: v for k, v in metadata["attributes"].items() if k not in ("created", CHECKSUM)}
    return metadata | {"attributes": attributes}
