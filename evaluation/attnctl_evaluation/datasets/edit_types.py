"""The ten edit types of PIE-Bench, by number (README of cure-lab/PnPInversion)."""

from __future__ import annotations

EDIT_TYPES: tuple[str, ...] = (
    "random", "change-object", "add-object", "delete-object", "change-content",
    "change-pose", "change-colour", "change-material", "change-background", "change-style",
)  # fmt: skip
"""Name by number; other data sets use the same names where they mean the same."""
