"""This user's folders: for measurements and what is made of them, and for what can be had again."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def data_folder() -> Path:
    """Folder of this user's profiles and calibration."""
    return _folders(*_decisive())[0]


def cache_folder() -> Path:
    """Folder of refreshed prices, and of locks."""
    return _folders(*_decisive())[1]


def _decisive() -> tuple[str | None, ...]:
    """What the folders depend on, so that they are looked up once and still follow the environment."""
    return tuple(os.environ.get(name) for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"))


@cache
def _folders(*_of: str | None) -> tuple[Path, Path]:
    from platformdirs import user_cache_path, user_data_path

    return user_data_path("vramcalc", appauthor=False), user_cache_path("vramcalc", appauthor=False)
