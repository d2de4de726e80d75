"""Open one patient's store: its root metadata, read in one request and checked."""

from __future__ import annotations

from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import read_sound
from lundprobe_zarr.stores.metadata import StoreMetadata, parse_store_of
from lundprobe_zarr.stores.place import StorePlace


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
        lambda text: (parse_store_of(text, StorePlace(location.url, patient_id)), text),
    )


def read_store(location: Location, patient_id: str) -> tuple[bytes, StorePlace]:
    """Read the text of a store's root `zarr.json`, and name the store; one request.

    Raises `DamagedStoreError` if there is no such store.
    """
    place = StorePlace(location.url, patient_id)
    try:
        return location.read(f"{store_path(patient_id)}/zarr.json"), place
    except FileNotFoundError as error:
        raise place.damaged(f"no store of patient {patient_id} there", "one") from error
