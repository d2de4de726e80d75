"""What an operating system's error means to whoever reads or writes files: finding and remedy."""

from __future__ import annotations

import errno

_ROOM = "make room there, or choose another place"
_RIGHTS = "expected permission to read and write there; give it, or choose another place"
_MEANINGS = {
    errno.ENOSPC: ("no space left on the device", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: (
        "a file would be larger than it may be",
        "raise the limit (`ulimit -f`), or choose a place on another file system",
    ),
    errno.EROFS: (
        "the file system is read-only",
        "mount it so that it can be written, or choose another place",
    ),
    errno.EACCES: ("permission denied", _RIGHTS),
    errno.EPERM: ("operation not permitted", _RIGHTS),
    errno.EIO: ("input/output error", "check the disk, or whoever serves it"),
    errno.ESTALE: ("the server of this disk has lost the file", "mount the disk again"),
    errno.EMFILE: ("too many open files", "raise the limit (`ulimit -n`)"),
    errno.ENFILE: ("too many open files on this machine", "end what holds them open"),
}
_AGAIN = "then run the same command again"


def meaning(error: OSError) -> tuple[str, str]:
    """What was found, and what to do about it."""
    known = _MEANINGS.get(error.errno or 0)
    if known is not None:
        return known[0], f"{known[1]}, {_AGAIN}"
    return error.strerror or str(error), "check that the place is there and may be used"


def described(error: OSError, where: str) -> str:
    """An error as a message: the file it names, or else `where`, the finding and the remedy."""
    finding, remedy = meaning(error)
    place = error.filename if isinstance(error.filename, str) else where
    return f"{place}: {finding}; {remedy}" if place else f"{finding}; {remedy}"
