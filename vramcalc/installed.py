"""Releases of the libraries that run a job, of those that are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel", "trl")
"""Libraries that decide what is allocated."""


def installed_versions(*more: str) -> dict[str, str]:
    """Versions of the installed ones of the libraries that decide memory, and of ``more``, by distribution."""
    found = {}
    for library in (*LIBRARIES, *more):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
