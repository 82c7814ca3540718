"""No test sees, or changes, the calibration and profiles of whoever runs it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_FOLDER = tempfile.mkdtemp(prefix="vramcalc-tests-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = _FOLDER
