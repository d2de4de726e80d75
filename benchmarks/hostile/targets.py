"""What is attacked: for each target how a case is made, how it is run, and what it may raise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.hostile import datasets, questions, sources
from benchmarks.hostile.material import Material
from lundprobe_zarr.errors import (
    DatasetError,
    LundProbeError,
    QueryError,
    SourceError,
    UsageError,
)


@dataclass(frozen=True)
class Target:
    """One place that takes input from strangers.

    `make` makes a case, `run` has it taken, which may raise `allowed` and nothing else. `cases` are
    those of a long run. `seeds` are sound cases where a case is bytes: those a coverage-guided
    fuzzer starts from; without, its bytes are the choices that `make` makes. Messages about the
    caller's own words may quote them (`quotes`), those about files may not.
    """

    name: str
    cases: int
    make: Callable[[random.Random], Any]
    run: Callable[[Any], None]
    allowed: type[Exception] | tuple[type[Exception], ...] = ()
    seeds: tuple[bytes, ...] = ()
    quotes: bool = False


def targets(material: Material) -> dict[str, Target]:
    """Every target by name."""
    return {target.name: target for target in _targets(material)}


def _targets(m: Material) -> Iterator[Target]:
    s, d, q = sources.Sources(m), datasets.Datasets(m), questions.Questions(m)
    headers = tuple(data[:348] for data in m.niftis)
    yield Target("header", 45_000, s.header, s.run_header, SourceError, headers)
    yield Target("nifti", 12_000, s.nifti, s.run_nifti, SourceError)
    yield Target("gzip", 12_000, s.gzip, s.run_nifti, SourceError, s.gzip_seeds)
    yield Target("side files", 12_000, s.side_file, s.run_side_file)
    yield Target("fiducials", 8_000, s.fiducials, s.run_fiducials, SourceError, (m.fiducials,))
    yield Target("inventory", 1_000, s.tree, s.run_tree, SourceError)
    yield Target(
        "manifest", 10_000, d.manifest, d.run_manifest, LundProbeError, d.manifest_seeds, True
    )
    yield Target("store metadata", 6_000, d.store, d.run_store, LundProbeError, quotes=True)
    yield Target("shards", 4_000, d.shard, d.run_shard, DatasetError)
    yield Target("tables", 2_500, d.table, d.run_table, LundProbeError)
    yield Target("saved files", 5_000, d.saved, d.run_saved, UsageError, quotes=True)
    yield Target("catalog and card", 3_000, d.described, d.run_described)
    yield Target("locations", 3_000, d.url, d.run_url, LundProbeError, quotes=True)
    yield Target("predicates", 10_000, q.predicate, q.run_predicate, QueryError, quotes=True)
    yield Target("queries", 6_000, q.query, q.run_query, QueryError, quotes=True)
