"""What tells one converted dataset from another."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DatasetIdentity(BaseModel):
    """What tells one converted dataset from another.

    `digest` is the SHA-256 of the patients' ids, parts, protocols, stores and source sizes.
    `created` and `schema_version` are for the record: finalising a dataset again, or upgrading it
    to a newer schema, leaves the patients and their voxels as they are.
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
        """How `other` differs from this one, a phrase each; empty if they are the same."""
        pairs = [(f, getattr(self, f), getattr(other, f)) for f in type(self).model_fields]
        found = [f"{f} {a!r}, not {b!r}" for f, a, b in pairs if a != b and f not in _UNTOLD]
        if not found and self.digest != other.digest:
            found.append("the same number of patients, but not the same ones or not the same files")
        return found


#: Fields that do not tell datasets apart in words of their own.
_UNTOLD = ("created", "digest", "schema_version")
