"""One job measured in a process of its own: started, waited for, and made into a profile row.

Nothing here imports torch; whatever happens to the process, there is a row.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from vramcalc.errors import InvalidValue, MissingExtra, VramcalcError
from vramcalc.files.folders import cache_folder
from vramcalc.inputs.alloc_conf import ENVIRONMENT
from vramcalc.inputs.machine.detect import Detection, detect_gpus
from vramcalc.inputs.stack import Gpu, Stack
from vramcalc.profiling.installed_versions import installed_versions
from vramcalc.profiling.row_log import locked
from vramcalc.profiling.rows import ProfileRow, RunSettings, measurement_key

LIMIT_S = 900.0
"""A job that takes longer is given up, and says so."""
_NEEDED = ("torch", "transformers", "peft", "accelerate")
_TAIL = 2000


class CannotMeasure(VramcalcError):
    """The device or the software does not get as far as a job: no row would say anything about one."""


@dataclass(frozen=True)
class Place:
    """Where jobs run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        gpu: as NVML describes it, None on a CPU; without what identifies the single card.
        uuid: of the GPU.
        driver: its driver.
    """

    device: str
    gpu: Gpu | None = None
    uuid: str | None = None
    driver: str | None = None

    def key(self, recipe: RunSettings) -> tuple[str, ...]:
        """What makes a measurement another one; see :attr:`~vramcalc.profiling.rows.ProfileRow.key`."""
        return measurement_key(recipe.job_id, self.gpu, versions())


def place(device: str, detection: Detection | None = None) -> Place:
    """The device by name, if it is there.

    Raises:
        InvalidValue: no such device here.
        MissingExtra: the libraries that run jobs are not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra("profile", "measuring runs the real libraries", missing)
    if device == "cpu":
        return Place("cpu")
    if device != "cuda":
        raise InvalidValue("--device", device, "cuda or cpu")
    found = detection or detect_gpus()
    if not found.devices:
        raise InvalidValue("--device", device, "a GPU", f"{found.problem}; --device cpu measures speed alone")
    first = found.devices[0]
    gpu = Gpu(**{**first.gpu.model_dump(), "gpu_id": _public_id(first.gpu), "uuid": None, "free_bytes": None})
    return Place("cuda", gpu, first.uuid, found.driver_version)


def _public_id(gpu: Gpu) -> str:
    """The table's id; a card that is not in the table goes by its UUID, which says too much."""
    return gpu.name.lower().replace(" ", "-") if gpu.gpu_id == gpu.uuid else gpu.gpu_id


def versions() -> dict[str, str]:
    """Releases of vramcalc and of the libraries that decide memory and speed, those that are installed."""
    from vramcalc.version import __version__

    return {"vramcalc": __version__, **installed_versions("accelerate", "torchao")}


class Worker:
    """A process that is ready to measure one job; leaving the ``with`` block ends it.

    Args:
        recipe: of the job; its allocator settings are the process's environment.
        where: the device.
    """

    def __init__(self, recipe: RunSettings, where: Place) -> None:
        self._recipe, self._where = recipe, where
        self._timed_out = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vramcalc.profiling.measure.worker"],
            env=environment(recipe.stack),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def row(self, *, limit_s: float = LIMIT_S) -> ProfileRow:
        """Measure; other jobs on the same GPU wait meanwhile.

        Raises:
            CannotMeasure: the process did not get as far as the job.
        """
        timer = threading.Timer(limit_s, self._give_up)
        with _alone_on(self._where):
            timer.start()
            try:
                text = self._answer()
            finally:
                timer.cancel()
        found = _parsed(text) or self._died(limit_s)
        failure = found.get("failure")
        if failure is not None and failure["phase"] == "start":
            raise CannotMeasure(f"{self._where.device} cannot be measured on: {failure['message']}")
        return made_row(self._recipe, self._where, found)

    def _give_up(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _answer(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {**self._recipe.model_dump(mode="json"), "gpu_uuid": self._where.uuid}
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        # Stdin stays open: the process ends with it.
        text = self._process.stdout.readline()
        self._process.wait()
        return text

    def _died(self, limit_s: float) -> dict[str, Any]:
        timed_out, status = self._timed_out, self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace")[-_TAIL:].strip()
        kind = "TimeLimit" if timed_out else f"Signal {_signal_name(-status)}" if status < 0 else f"ExitStatus {status}"
        said = f"gave up after {limit_s:g} s" if timed_out else "the process ended without an answer"
        # A process that ends by itself before it answers never got to the job.
        phase = "unknown" if status < 0 or timed_out else "start"
        message = f"{said}; its last words: {tail}" if tail else said
        return {"outcome": "failed", "failure": {"kind": kind, "message": message, "phase": phase, "asked_bytes": None}}

    def close(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                # What was not written to a process that is gone stays unwritten.
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def environment(stack: Stack) -> dict[str, str]:
    """The environment of a job: the shell's, but for torch's allocator, whose settings are the recipe's."""
    kept = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    parts = [stack.alloc_conf] if stack.alloc_conf else []
    if stack.expandable_segments:
        parts.append("expandable_segments:True")
    # The old name: every release of torch reads it.
    return kept | ({"PYTORCH_CUDA_ALLOC_CONF": ",".join(parts)} if parts else {})


def made_row(recipe: RunSettings, where: Place, found: dict[str, Any], *, source: str = "profile") -> ProfileRow:
    """A row from what was found out about a job.

    Args:
        recipe: what was asked for.
        where: the device.
        found: the other fields of a row; ``facts`` are those of its machine.
        source: ``profile`` or ``callback``.
    """
    machine = {
        "gpu": where.gpu.model_dump(mode="json") if where.gpu else None,
        "driver": where.driver,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        **found.get("facts", {}),
    }
    plain = {
        "schema": "vramcalc-profile",
        "version": 1,
        "job_id": recipe.job_id,
        "source": source,
        "recorded_at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "recipe": recipe.model_dump(mode="json"),
        "machine": machine,
        **{name: value for name, value in found.items() if name != "facts"},
        "versions": versions(),
    }
    return ProfileRow.model_validate_json(json.dumps(plain))


def _parsed(text: str) -> dict[str, Any] | None:
    """The answer, None where the process was cut off."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _alone_on(where: Place) -> Any:
    """Nobody else of this user measures on the GPU: two jobs on one card would each see the other's memory."""
    if where.uuid is None:
        return nullcontext()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder / f"{where.uuid}")
