"""`view`: look at a dataset in a browser, on this machine."""

from __future__ import annotations

import threading
import webbrowser
from typing import Annotated

import typer

from lundprobe_zarr.cli.place import (
    PredictionsPlace,
    StorageOptions,
    parse_options,
    predictions_option,
)
from lundprobe_zarr.cli.serve import named_datasets
from lundprobe_zarr.service.packages import require_packages

#: Seconds until the browser is opened: by then the service answers, or the browser waits for it, as
#: the port is listened at already.
_SOON = 0.3


def view(
    dataset: Annotated[str, typer.Argument(help="A converted dataset: a folder or a bucket URL.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    plane_cache_mb: Annotated[
        int, typer.Option(min=0, help="Memory for decoded voxels, MB.")
    ] = 512,
    predictions: PredictionsPlace = None,
    storage_options: StorageOptions = None,
) -> None:
    """View a dataset in the browser, on this machine only, until Ctrl-C.

    The link opens the page once; the browser then has a cookie for as long as the service runs.
    """
    require_packages()
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.service.own import OwnService
    from lundprobe_zarr.service.run import run
    from lundprobe_zarr.service.voxels.volumes import CACHE_OPTION

    options = parse_options(storage_options)
    named = named_datasets([dataset], [], options, refuse_real=False)
    shown = predictions_option(predictions, options)
    own = OwnService.of(named, options, {CACHE_OPTION: plane_cache_mb, **shown}, port)
    link = own.link()
    say(f"Open {link}")
    say("The link works once. Ctrl-C ends the service.")
    if browser:
        opening = threading.Timer(_SOON, webbrowser.open, (link,))
        opening.daemon = True
        opening.start()
    run(own.settings, own.listening)
