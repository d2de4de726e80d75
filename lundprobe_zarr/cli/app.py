"""The list of commands, and the handling of their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lundprobe_zarr.cli import token
from lundprobe_zarr.cli.agreement import agreement
from lundprobe_zarr.cli.audit import audit
from lundprobe_zarr.cli.bench import bench
from lundprobe_zarr.cli.convert import convert, finalise
from lundprobe_zarr.cli.copy import copy
from lundprobe_zarr.cli.demo import demo
from lundprobe_zarr.cli.doctor import doctor
from lundprobe_zarr.cli.dvh import dvh
from lundprobe_zarr.cli.export import export, preview
from lundprobe_zarr.cli.info import info
from lundprobe_zarr.cli.measure import measure
from lundprobe_zarr.cli.nnunet import export_nnunet
from lundprobe_zarr.cli.phantom import phantom
from lundprobe_zarr.cli.quality import check_against_paper, qc
from lundprobe_zarr.cli.query import query
from lundprobe_zarr.cli.repair import repair
from lundprobe_zarr.cli.serve import serve
from lundprobe_zarr.cli.status import INTERRUPTED, WRONG_USAGE, describe, exit_status
from lundprobe_zarr.cli.validate import validate
from lundprobe_zarr.cli.verbosity import set_verbosity
from lundprobe_zarr.cli.view import view
from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.vocabulary.text import escaped

#: Options of all commands, which may stand before or behind the command's name.
_EVERYWHERE = ("--verbose", "-v", "--quiet", "-q")


class _Commands(TyperGroup):
    """The group of commands; errors raised on purpose become a line and an exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options of all commands from wherever they stand before a `--`."""
        end = args.index("--") if "--" in args else len(args)
        first = [a for a in args[:end] if a in _EVERYWHERE]
        rest = [a for a in args[:end] if a not in _EVERYWHERE]
        return list(super().parse_args(ctx, [*first, *rest, *args[end:]]))

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `lundprobe-zarr … | head`: typer ends quietly
        except (LundProbeError, OSError) as error:
            typer.echo(f"error: {escaped(describe(error))}", err=True)
            raise typer.Exit(exit_status(error)) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    add_completion=True,  # --install-completion, --show-completion
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich would double the time it takes
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="LUND-PROBE radiotherapy data as labelled, chunked, streamable Zarr.",
    epilog="Exit status: 0 done; 1 some patients failed; 2 wrong usage; 3 not a converted "
    "dataset, or damaged; 130 interrupted.",
)

#: Each command with its examples; they run, in this order, in an empty folder.
COMMANDS: tuple[tuple[Callable[..., Any], str], ...] = (
    (phantom, "phantom SOURCE --patients 3 --extended 1"),
    (convert, "convert SOURCE DATASET"),
    (finalise, "finalise DATASET"),
    (measure, "measure DATASET"),
    (agreement, "agreement DATASET --pairs nnunet_observer"),
    (validate, "validate DATASET --deep"),
    (repair, "repair SOURCE DATASET"),
    (copy, "copy DATASET COPY"),
    (info, "info DATASET"),
    (query, "query DATASET \"protocol = 'newAcq' AND NOT missing_PenileBulb\""),
    (query, 'query DATASET "SELECT structure, avg(volume_cc) FROM clinical GROUP BY ALL"'),
    (qc, "qc DATASET --html qc.html"),
    (check_against_paper, "check-against-paper DATASET"),
    (export, "export DATASET newAcq_cba26d19714d0247 OUT"),
    (export, "export DATASET CROPPED --where missing_Genitalia --crop PTVT_427:20mm --resample 3"),
    (export, "export DATASET BIDS --layout bids --structures CTVT_427,Rectum"),
    (export_nnunet, "export-nnunet DATASET RAW --dataset-id 801 --labels CTVT_427,Rectum,Bladder"),
    (bench, "bench DATASET --patch 8,32,32 --structures Rectum --patches 8"),
    (preview, "preview DATASET newAcq_cba26d19714d0247 picture.png"),
    (serve, "serve DATASET --port 8000"),
    (audit, "audit audit.jsonl"),
    (audit, 'audit audit.jsonl --sql "SELECT caller, sum(bytes) FROM audit GROUP BY ALL"'),
    (dvh, "dvh DATASET newAcq_cba26d19714d0247 --metrics 'D98%,D0.03cc,V38.43Gy[cc],HI'"),
    (dvh, "dvh DATASET --method table --structures Rectum --plot dvh.png --by protocol"),
    (dvh, "dvh DATASET --method table --constraints icru"),
    (view, "view DATASET --no-browser"),
    (doctor, "doctor"),
    (doctor, "doctor DATASET"),
    (demo, "demo DEMO"),
)

for _command in dict.fromkeys(command for command, _ in COMMANDS):
    _examples = (f"Example: lundprobe-zarr {e}" for command, e in COMMANDS if command is _command)
    app.command(epilog="\n\n".join(_examples))(_command)

_tokens = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage access to a service, in its access file.",
)
for _name, _command in dict.fromkeys((name, command) for name, command, _ in token.COMMANDS):
    _examples = (f"Example: lundprobe-zarr {e}" for name, _, e in token.COMMANDS if name == _name)
    _tokens.command(_name, epilog="\n\n".join(_examples))(_command)
app.add_typer(_tokens, name="token")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Log each step to standard error; twice: log each request too.",
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress; results and errors only.")
    ] = False,
) -> None:
    set_verbosity(verbose, quiet)
    if version:
        from lundprobe_zarr.vocabulary.version import package_version

        typer.echo(f"lundprobe-zarr {package_version()}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_USAGE)
