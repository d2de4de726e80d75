"""Open one patient's store: its root metadata, read in one request and checked."""

from __future__ import annotations

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import read_sound
from lundprobe_zarr.stores.metadata import StoreMetadata, parse_store_of
from lundprobe_zarr.stores.remedy import remedy as remedy_of_store


def open_store(location: Location, patient_id: str) -> StoreMetadata:
    """Metadata of one patient's store; one request. Raises `DamagedStoreError` if it is unsound."""
    return read_sound_store(location, patient_id)[0]


def read_sound_store(location: Location, patient_id: str) -> tuple[StoreMetadata, bytes]:
    """Metadata of one patient's store and its text; raises as `open_store` does."""
    place = store_path(patient_id)
    return read_sound(
        location,
        f"{place}/zarr.json",
        lambda: read_store(location, patient_id)[0],
        lambda text: (parse_store_of(patient_id, text, location.path(place)), text),
    )


def read_store(location: Location, patient_id: str) -> tuple[bytes, str]:
    """Text of a store's root `zarr.json` and the store's name for messages; one request.

    Raises `DamagedStoreError` if there is no such store.
    """
    path = store_path(patient_id)
    try:
        return location.read(f"{path}/zarr.json"), location.path(path)
    except FileNotFoundError as error:
        raise DamagedStoreError(
            f"{location.path(path)}: no store of patient {patient_id} there; expected one; "
            f"{remedy_of_store(location.path(path))}"
        ) from error
