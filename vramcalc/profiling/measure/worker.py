"""One measurement in a process of its own: a request on stdin, the answer on stdout, both one line of JSON.

The process ends when its parent does: a job that nobody waits for must not disturb the next one's measurement.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from typing import Any


def main() -> None:
    """Prepare, wait for the request, measure, answer."""
    # Whatever libraries print goes to stderr.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import torch  # noqa: F401 - slow to import: done before the device is free
    import transformers

    transformers.logging.set_verbosity_error()
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(json.dumps(answer(json.loads(line))), file=channel, flush=True)


def _end_with_parent() -> None:
    """Stdin ends when the parent does."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what is asked for.

    Args:
        request: the fields of a ``profiles.RunSettings``, and ``gpu_uuid`` for NVML.
    """
    from pydantic import TypeAdapter

    from vramcalc.inputs.machine.device_use import DeviceUse
    from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec
    from vramcalc.profiling.measure.device import device_named
    from vramcalc.profiling.measure.measure import Measurement, Run

    method: Any = TypeAdapter(Method).validate_python(request["method"])
    run = Run(
        ModelSpec(**request["model"]),
        method,
        TrainingSpec(**request["training"]),
        Stack(**request["stack"]),
        device_named(request["device"]),
    )
    use = DeviceUse(request["gpu_uuid"]) if request["gpu_uuid"] else None
    try:
        return Measurement(run, use).take(find_smallest=request["find_smallest"], blocks=request["live_blocks"])
    finally:
        if use is not None:
            use.close()


if __name__ == "__main__":
    main()
