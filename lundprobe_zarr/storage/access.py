"""Check that a bucket cannot be read without credentials, before patients' data are sent."""

from __future__ import annotations

import uuid

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive, writer

#: Prefix of the test object; the name of its writer follows.
_PROBE = "probe-"


def require_private(location: Location) -> None:
    """Require that what is written to `location` cannot be read without credentials.

    Writes a small object, reads it without credentials, and deletes it, with those that killed
    processes of this machine left. Any answer other than that object counts as private. Only S3,
    GCS, Azure and the Hugging Face Hub are checked, not disks, memory or other protocols. Raises
    `UsageError` if the object could be read, `DatasetError` if it could not be written.
    """
    public = location.anonymous()
    if public is None:
        return
    name, contents = f"{_PROBE}{writer()}", uuid.uuid4().bytes
    location.write(name, contents)
    try:
        if _read(public, name) == contents:
            raise UsageError(
                "anyone can read what is written there: a test object was read without credentials",
                where=location.url,
                expected=(
                    "a private place, since LUND-PROBE is under controlled access "
                    "and a conversion stays under the terms of its source"
                ),
                remedy=(
                    "make the bucket private or choose another; if all of it "
                    "may be public, such as a phantom, give --allow-public "
                    "(allow_public=True)"
                ),
            )
    finally:
        location.delete(name)
    for left in location.children(""):
        if left.startswith(_PROBE) and is_alive(left.removeprefix(_PROBE)) is False:
            location.delete(left)


def _read(public: Location, name: str) -> bytes | None:
    try:
        return public.read(name)
    except (FileNotFoundError, DatasetError):
        return None
