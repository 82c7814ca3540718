"""Releases of the libraries that run a job, of those that are installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel", "trl")
"""Libraries that decide what is allocated."""


def installed_versions(*more: str) -> dict[str, str]:
    """Versions of the installed ones of the libraries that decide memory, and of ``more``, by distribution."""
    return {library: found for library in (*LIBRARIES, *more) if (found := _installed(library))}


@cache
def _installed(library: str) -> str | None:
    # A campaign asks for every job whether its row is there; reading metadata takes half a millisecond each time.
    try:
        return version(library)
    except PackageNotFoundError:
        return None
