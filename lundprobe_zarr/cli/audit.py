"""`audit`: who read what of which patients, from the logs of the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.query import (
    FormOption,
    Memory,
    OutputFile,
    Timeout,
    named_once,
    output_form,
    write_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa


def audit(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Audit logs of `serve`; .gz too.")
    ],
    sql: Annotated[
        str | None,
        typer.Option(help="Ask the table `audit` with a SELECT instead; quote it."),
    ] = None,
    form: FormOption = None,
    output: OutputFile = None,
    timeout: Timeout = 60.0,
    memory: Memory = "2GB",
) -> None:
    """Summarise who read what of which patients, from audit logs of the service.

    A row says how often a caller read the tables of a dataset, or the voxels of a patient, how many
    bytes were sent, and when first and last (UTC). The tables hold all patients. `cut` counts
    answers whose end was not recorded because the service was killed: a part of a file was sent.

    With --sql, the table `audit` has a row a request: time, caller, address, method, route,
    dataset, sha, path, range, sql, status, bytes, ms, patient_id, content, id and event.
    """
    from lundprobe_zarr.service.access.audit_log import SUMMARY, read_audit
    from lundprobe_zarr.sql.worker import limits, worker

    chosen = output_form(form, output)
    bounds = limits(timeout, memory)
    worker().prepare()  # it starts while the logs are read
    table, damaged = read_audit(files)
    found = worker().run(_checked(sql or SUMMARY), [sql or SUMMARY], {"audit": table}, bounds)
    for line in damaged[:10]:
        typer.echo(f"not a line of an audit log, left out: {line}", err=True)
    if len(damaged) > 10:
        typer.echo(f"and {len(damaged) - 10} more", err=True)
    rows = f"{found.num_rows} {'row' if found.num_rows == 1 else 'rows'}"
    summary = f"{rows} from {table.num_rows} requests"
    write_rows(_plain(named_once(found)), chosen, output, summary)


def _checked(text: str) -> str:
    """Return a SELECT over the table `audit`. Raises `QueryError` for anything else."""
    from lundprobe_zarr.service.access.audit_log import TABLE
    from lundprobe_zarr.sql.session import parse_select, tables_of

    tables_of(parse_select(text, expected="a SELECT of the table audit"), (TABLE,), text)
    return text


def _plain(found: pa.Table) -> pa.Table:
    """Return a table whose sums are integers: DuckDB's sum of integers is a decimal."""
    import pyarrow as pa

    for number, field in enumerate(found.schema):
        if pa.types.is_decimal(field.type) and field.type.scale == 0:
            column = found.column(number).cast(pa.int64())
            found = found.set_column(number, field.name, column)
    return found
