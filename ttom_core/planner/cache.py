"""Plans kept on disk, one JSON file each, named by a digest of everything that went into it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_BYTES = 4_000_000

Value = TypeVar("Value", bound=BaseModel)


def default_folder() -> Path:
    """Where the command keeps plans: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttom" / "plans"


def digest(**parts: Any) -> str:
    """A name for these parts, the same in every process.

    >>> digest(a=1, b="x") == digest(b="x", a=1) != digest(a=1, b="y")
    True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path, key: str, kind: type[Value]) -> Value | None:
    """What lies under a key; None when nothing does, or something that is no `kind`."""
    path = folder / f"{key}.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write(folder: Path, key: str, value: BaseModel) -> None:
    """Keep a value, whole or not at all; of several writers at once, the last wins.

    A folder that cannot be written costs a warning, not the plan.
    """
    part = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(value.model_dump_json())
        os.replace(part, folder / f"{key}.json")
    except OSError as error:
        logging.getLogger(__name__).warning("The plan was not kept in %s: %s.", folder, error.strerror)
        if part is not None and os.path.exists(part):
            os.unlink(part)
