"""No test sees, or changes, the calibration and profiles of whoever runs it, and each does the same every time.

``--hypothesis-profile explore`` draws other examples; what it finds becomes an ``@example``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

_FOLDER = tempfile.mkdtemp(prefix="vramcalc-tests-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = _FOLDER

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")
