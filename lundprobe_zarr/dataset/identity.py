"""The identity of a converted dataset."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DatasetIdentity(BaseModel):
    """The identity of a converted dataset.

    `digest` is the SHA-256 of the patients' ids, parts, protocols, stores and source sizes.
    `created` and `schema_version` are informative only: finalising or upgrading a dataset does not
    change its patients and voxels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    doi: str
    schema_version: int
    precision: str
    patients: int
    digest: str
    created: str

    def differences(self, other: DatasetIdentity) -> list[str]:
        """Return the differences of `other` from this one, a phrase each; empty if equal."""
        pairs = [(f, getattr(self, f), getattr(other, f)) for f in type(self).model_fields]
        found = [f"{f} {a!r}, not {b!r}" for f, a, b in pairs if a != b and f not in _UNNAMED]
        if not found and self.digest != other.digest:
            found.append("the same number of patients, but not the same ones or not the same files")
        return found


#: Fields that are not named in a list of differences.
_UNNAMED = ("created", "digest", "schema_version")
