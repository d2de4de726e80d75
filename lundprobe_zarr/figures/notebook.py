"""Figures without pyplot: shown by notebooks, saved as PNG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.local import named, write_local


class NotebookFigure(Figure):
    """A figure that notebooks display without a pyplot backend.

    It is not registered with pyplot, so it need not be closed and is not shown twice.
    """

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG, for IPython's display protocol."""
        return png_of(self)


def png_of(figure: Figure, **options: Any) -> bytes:
    """Return a figure as PNG; `options` are those of `Figure.savefig`."""
    picture = BytesIO()
    figure.savefig(picture, format="png", **options)
    return picture.getvalue()


def require_png(out: Path) -> None:
    """Raise `UsageError` unless `out` is the name of a PNG file."""
    if out.suffix.lower() != ".png":
        raise UsageError(
            f"{str(out)!r} does not end in .png",
            expected=f"the name of a PNG file, e.g. {str(out.with_suffix('.png'))!r}",
        )


def save_png(figure: Figure, out: Path, **options: Any) -> None:
    """Write a figure to `out`, replacing a file that is there; raise as `require_png` does."""
    require_png(out)
    picture = png_of(
        figure, **options
    )  # matplotlib interprets names, and a half-written file shows
    with named(out):
        write_local(out, picture)
