"""Answers one detection per line: the path of a machine's description and an environment in, what was found out."""

import json
import os
import sys
import traceback

import pynvml

from vramcalc.inputs.machine.detect import detect_gpus


def _is_initialised() -> bool:
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        return False
    return True


for line in sys.stdin:
    os.environ["NVML_STUB_MACHINE"], environment = json.loads(line)
    try:
        found = detect_gpus(environment)
        answer = {
            **vars(found),
            "devices": [d.to_dict() for d in found.devices],
            "hidden": [d.to_dict() for d in found.hidden],
            "left_initialised": _is_initialised(),
        }
    except Exception:
        answer = {"raised": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
