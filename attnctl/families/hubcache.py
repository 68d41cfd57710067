"""Where the Hugging Face hub keeps downloaded models on this machine; looks at folders, downloads nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attnctl.errors import InputError
from attnctl.files import read_text


def hub_cache() -> Path:
    """Return the folder that hub models are downloaded to, by the variables that the hub's client obeys."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return _expanded(value)
    if value := os.environ.get("HF_HOME"):
        return _expanded(value) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def hub_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a downloaded hub model; its name is the commit that was downloaded.

    Args:
        name: Hub id ``owner/name``.
        revision: Branch, tag or full commit; None means ``main``.

    Returns:
        The folder, or None if that revision is not in the cache.
    """
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    revision = revision or "main"
    commit = revision
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            commit = read_text(folder / "refs" / revision, limit=4096).strip()
        except InputError:
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", commit) and snapshot.is_dir() else None


def _expanded(value: str) -> Path:
    return Path(os.path.expandvars(value)).expanduser()
