"""`view`: look at a dataset in a browser, on this machine."""

from __future__ import annotations

import secrets
import threading
import webbrowser
from typing import Annotated

import typer

from lundprobe_zarr.cli.place import StorageOptions, parse_options
from lundprobe_zarr.cli.serve import named_datasets, state_folder
from lundprobe_zarr.cli.serving import require_packages

_HOST = "127.0.0.1"
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
    storage_options: StorageOptions = None,
) -> None:
    """Look at a dataset in the browser: for oneself, on this machine, until Ctrl-C.

    The link opens the page once; the browser then has a cookie for as long as the service runs.
    """
    require_packages()
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.service.access import new_token, token_sha256
    from lundprobe_zarr.service.entry import ENTRY_OPTION, ENTRY_PATH
    from lundprobe_zarr.service.run import listen, run
    from lundprobe_zarr.service.settings import Settings
    from lundprobe_zarr.service.volumes import CACHE_OPTION

    options = parse_options(storage_options)
    named = named_datasets([dataset], [], options, refuse_real=False)
    token, code = new_token(), secrets.token_urlsafe(32)
    listening = listen(_HOST, port)
    url = f"http://{_HOST}:{listening.getsockname()[1]}"
    settings = Settings(
        datasets=named,
        state=str(state_folder()),
        public_url=url,
        storage_options=options,
        token_sha256=token_sha256(token),
        options={
            ENTRY_OPTION: {"code_sha256": token_sha256(code), "token": token},
            CACHE_OPTION: plane_cache_mb,
        },
    )
    link = f"{url}{ENTRY_PATH}?code={code}"
    say(f"Open {link}")
    say("The link works once. Ctrl-C ends the service.")
    if browser:
        opening = threading.Timer(_SOON, webbrowser.open, (link,))
        opening.daemon = True
        opening.start()
    run(settings, listening)
