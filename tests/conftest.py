"""No test sees, or changes, the calibration and profiles of whoever runs it, and each does the same every time.

Torch has one thread in each worker, and in whatever a test starts: tiny operators spend their time waiting for threads.

``--hypothesis-profile explore`` draws other examples; what it finds becomes an ``@example``.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile

from hypothesis import settings

_FOLDER = tempfile.mkdtemp(prefix="vramcalc-tests-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = _FOLDER
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")

_SEEN: set[str] = set()
"""Modules whose objects the cycle collector has put aside."""


def pytest_runtest_setup() -> None:
    """What libraries keep once imported is looked through here, and not again each time that a trace collects."""
    if len(sys.modules) > len(_SEEN) + 50:
        _SEEN.update(sys.modules)
        gc.collect()
        gc.freeze()
