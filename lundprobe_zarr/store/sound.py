"""Reading an object from afar again before it is called damaged: the way may have spoilt it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lundprobe_zarr.errors import DatasetError, SchemaVersionError
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.patience import PAUSES

_T = TypeVar("_T")


def read_sound(
    location: Location, relative: str, fetch: Callable[[], bytes], parse: Callable[[bytes], _T]
) -> _T:
    """What `parse` makes of an object's bytes, as `fetch` reads them.

    If that raises `DatasetError`, what comes from afar is fetched again, up to twice; one that
    comes again as it was is damaged where it is. Raises as `fetch` and `parse` do.
    """
    data = fetch()
    for pause in () if location.is_local else PAUSES:
        try:
            return parse(data)
        except SchemaVersionError:
            raise
        except DatasetError:
            location.forget(relative)
            time.sleep(pause)
        again = fetch()
        if again == data:
            break
        data = again
    return parse(data)
