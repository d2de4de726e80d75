"""The page in a notebook: a service of this process, and a frame that shows its page.

Cohorts and patients have `view` of here, by `stores.extensions`. There is one service a dataset
and process. It ends with the process; a forked child has none of its parent's.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from contextlib import ExitStack
from html import escape
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from lundprobe_zarr.cohort import Cohort, Patient
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.service.packages import require_packages
from lundprobe_zarr.storage.forks import on_fork
from lundprobe_zarr.storage.location import Location

if TYPE_CHECKING:
    from lundprobe_zarr.service.own import OwnService

#: Variable with the URL by which browsers reach the service, where that is not 127.0.0.1: behind
#: jupyter-server-proxy or the like. `{port}` stands for the port.
URL_VARIABLE = "LUNDPROBE_ZARR_NOTEBOOK_URL"
#: Variable with further origins, separated by spaces, whose pages may show the page in a frame.
ORIGINS_VARIABLE = "LUNDPROBE_ZARR_NOTEBOOK_ORIGINS"
#: Whose pages may: those of this machine, on any port, and notebooks of VS Code.
_FRAMES = (
    "'self'",
    "http://127.0.0.1:*",
    "http://localhost:*",
    "https://127.0.0.1:*",
    "https://localhost:*",
    "vscode-webview:",
    "vscode-file:",
)
_ORIGIN = re.compile(r"https?://[\w.-]+(:\d+)?", re.ASCII)
_URL = re.compile(r"(https?://[\w.-]+(:(\d+|\{port\}))?)?(/[\w./@%{}~-]*)?", re.ASCII)
#: Pixels per inch of the picture, which is 12 inches wide: some 400 kB in the notebook's file.
_DPI = 80


def view(shown: Cohort | Patient, height: int = 800) -> EmbeddedPage:
    """Return the page of a cohort or patient; see `Cohort.view`."""
    require_packages()
    if height < 1:
        raise UsageError(f"height is {height}", expected="a positive number of pixels, e.g. 800")
    running = _service(shown.location)
    return EmbeddedPage(shown, height, running, _fragment(running.name, shown))


class EmbeddedPage:
    """The page of a patient or cohort, which notebooks show in a frame.

    Attributes
    ----------
    shown : Cohort or Patient
        What the page shows at first.
    height : int
        Height of the frame, pixels.
    """

    def __init__(
        self, shown: Cohort | Patient, height: int, running: _Running, fragment: str
    ) -> None:
        self.shown = shown
        self.height = height
        self._running = running
        self._fragment = fragment

    def __repr__(self) -> str:
        return f"<Page of {self.shown!r}; .link() opens it in a browser>"

    def link(self) -> str:
        """Return a new link, which opens the page once, for one browser."""
        return self._running.link() + self._fragment

    def _repr_html_(self) -> str:
        """Return the frame, and a link for a browser that does not show frames of this machine."""
        what = escape(self.shown.patient_id) if isinstance(self.shown, Patient) else "Cohort"
        return (
            f'<iframe src="{escape(self.link())}" title="{what}" width="100%" '
            f'height="{self.height}" style="border: 0" allow="clipboard-write; fullscreen">'
            f'</iframe>\n<a href="{escape(self.link())}" target="_blank" rel="noopener">'
            f"{what} in a window of its own</a>"
        )

    def _repr_png_(self) -> bytes | None:
        """Return the patient's preview, for where no frame is shown; None for cohorts.

        None too if a store is damaged: the page says what of it is.
        """
        if not isinstance(self.shown, Patient):
            return None
        from lundprobe_zarr.figures.notebook import png_of
        from lundprobe_zarr.figures.planes import read_preview
        from lundprobe_zarr.figures.preview import draw_preview

        try:
            preview = read_preview(self.shown.location, self.shown.patient_id)
        except DatasetError:
            return None
        return png_of(draw_preview(preview), dpi=_DPI)


def _fragment(name: str, shown: Cohort | Patient) -> str:
    """Return the fragment of the page's URL that shows a patient, or a cohort by its condition.

    Raises `UsageError` if the service would not take the condition.
    """
    if isinstance(shown, Patient):
        return f"#/{name}/{quote(shown.patient_id, safe='')}"
    from lundprobe_zarr.service.http.operations import MOST_CHARACTERS

    condition = shown.predicate
    if condition is None:
        quoted = ["'" + patient_id.replace("'", "''") + "'" for patient_id in shown.ids]
        condition = f"patient_id IN ({', '.join(quoted)})" if quoted else "false"
    if len(condition) > MOST_CHARACTERS:
        raise UsageError(
            f"the condition that selects these {len(shown)} patients has {len(condition)} "
            "characters",
            expected=f"at most {MOST_CHARACTERS}",
            remedy="select with cohort.where, or view fewer patients",
        )
    return f"#/{name}" + ("" if condition == "true" else f"?where={quote(condition, safe='')}")


class _Running(NamedTuple):
    """A service that runs: the dataset's name there, how browsers reach it, and its end."""

    own: OwnService
    name: str
    base: str
    ending: ExitStack

    def link(self) -> str:
        """Return a link that opens the page once."""
        return self.own.link(self.base)


_lock = threading.Lock()
_running: dict[str, _Running] = {}


def _service(location: Location) -> _Running:
    """Return the service of a dataset; start it if there is none.

    Raises `UsageError` for what the environment says wrong, and like `run.in_background`.
    """
    url, options = location.arguments
    key = repr((url, sorted(options.items())))
    with _lock:
        if key not in _running:
            _running[key] = _start(location)
        return _running[key]


def _start(location: Location) -> _Running:
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.service.access.session import FRAMES_OPTION
    from lundprobe_zarr.service.datasets.published import usual_name
    from lundprobe_zarr.service.own import OwnService
    from lundprobe_zarr.service.run import in_background

    base, frames = _base(), [*_FRAMES, *_origins()]
    url, options = location.arguments
    name = usual_name(open_manifest(location))
    own = OwnService.of({name: url}, options, {FRAMES_OPTION: frames})
    ending = ExitStack()
    with ExitStack() as failing:
        failing.callback(own.listening.close)
        ending.enter_context(in_background(own.settings, own.listening))
        failing.pop_all()
    found = base.replace("{port}", str(own.port)) if base else own.settings.public_url
    return _Running(own, name, found.rstrip("/"), ending)


def _base() -> str | None:
    given = os.environ.get(URL_VARIABLE)
    if given and not _URL.fullmatch(given):
        raise UsageError(
            f"{URL_VARIABLE} is {given!r}",
            expected="a URL or its path, with {port} for the port, e.g. /user/me/proxy/{port}/",
        )
    return given or None


def _origins() -> list[str]:
    origins = os.environ.get(ORIGINS_VARIABLE, "").split()
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"{ORIGINS_VARIABLE}: {origin!r} is no origin",
                expected="a scheme, a host and perhaps a port, e.g. https://hub.example.org",
            )
    return origins


@atexit.register
def end_services() -> None:
    """End the services of this process."""
    with _lock:
        while _running:
            _running.popitem()[1].ending.close()


def _forget_inherited() -> None:
    """Leave the parent's services to it: a port stays open as long as any process holds it.

    The event loop, which is dead here, refers to the socket and would not let it be closed; what it
    may yet close must not be a file of somebody else. So the number becomes one of a null device.
    """
    global _lock
    _lock = threading.Lock()
    if not _running:
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    for running in _running.values():
        os.dup2(nothing, running.own.listening.fileno(), inheritable=False)
    os.close(nothing)
    _running.clear()


on_fork(in_child=_forget_inherited)
