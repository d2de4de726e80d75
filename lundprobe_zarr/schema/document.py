"""JSON that may come from anywhere: read into plain values, and what is wrong with it in words."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

#: Of many mistakes the first few say enough.
_NAMED = 3


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text is; a half of a surrogate pair, which is no text, is refused.

    Raises `ValueError`, with nothing of the text in it, for anything else.
    """
    try:
        value = json.loads(text)
        if "\\ud" in (text if isinstance(text, str) else text.decode("latin-1")).lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair in a text") from None
    return value


def reasons(error: ValidationError) -> str:
    """What is wrong with which fields, on one line; not what they hold."""
    found = error.errors(include_url=False, include_input=False)
    said = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in found]
    more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return ", ".join(said[:_NAMED]) + more
