"""Profile rows as a GPU would give them, for tests that have none."""

from __future__ import annotations

from typing import Any

from configs import CONFIGS

from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.profiling.campaign import planned_job
from vramcalc.profiling.in_a_process import Place, made_row
from vramcalc.profiling.rows import ProfileRow, RunSettings

GIB = 1 << 30
H100 = Place("cuda", catalog.gpu("h100-sxm"), "GPU-0", "580.159.04")
CPU = Place("cpu")


def recipe(method: str = "lora", where: Place = H100, **settings: Any) -> RunSettings:
    """A tiny job's."""
    model = to_spec(CONFIGS["llama"], "tiny")
    asked = {"model": model, "method": method, "seq_len": 64, "device": where.device, **settings}
    return planned_job(asked, where).recipe


def peaks(allocated: int, reserved: int) -> dict[str, int]:
    return {"allocated_bytes": allocated * GIB, "reserved_bytes": reserved * GIB}


def moment(process: int | None, device: int, reserved: int) -> dict[str, int | None]:
    return {
        "process_bytes": None if process is None else process * GIB,
        "device_used_bytes": device * GIB,
        "reserved_bytes": reserved * GIB,
    }


TIMING = {"step_s": 0.5, "steps_s": [0.4, 0.5, 0.5, 0.5, 0.6], "warmup_steps": 5, "tokens_per_s": 128.0}
MEMORY = {
    "load": peaks(4, 5),
    "forward": peaks(8, 11),
    "backward": peaks(10, 12),
    "optimizer": peaks(9, 12),
    "whole": peaks(10, 12),
    "before_cuda": moment(None, 1, 0),
    "context": moment(0, 1, 0),
    "end": moment(13, 14, 12),
    "device_used_peak_bytes": 14 * GIB,
    "samples": 40,
}
MEASURED: dict[str, Any] = {
    "outcome": "measured",
    "facts": {"torch_total_bytes": 79 * GIB, "cuda": "13.0", "cudnn": "91000"},
    "memory": MEMORY,
    "timing": TIMING,
    "smallest": {
        "suffices_bytes": 11 * GIB,
        "fails_bytes": 10 * GIB,
        "resolution_bytes": GIB,
        "residue_bytes": 0,
        "trials": [{"limit_bytes": 12 * GIB, "suffices": True}, {"limit_bytes": 11 * GIB, "suffices": True}],
    },
    "blocks": [{"n_bytes": GIB, "count": 2, "where": "transformers/models/llama/modeling_llama.py:1 forward"}],
    "sdpa_backend": "flash_attention",
    "wall_s": 20.0,
}
OUT_OF_MEMORY: dict[str, Any] = {
    "outcome": "out_of_memory",
    "failure": {"kind": "OutOfMemoryError", "message": "CUDA out of memory.", "phase": "forward", "asked_bytes": GIB},
    "memory": {"load": peaks(4, 5), "forward": peaks(70, 78), "whole": peaks(70, 78)},
}


def row(found: dict[str, Any] = MEASURED, where: Place = H100, **settings: Any) -> ProfileRow:
    """A row of a tiny job."""
    return made_row(recipe(where=where, **settings), where, found)


def cpu_row(asked: RunSettings) -> ProfileRow:
    """What a CPU gives for a recipe."""
    return made_row(asked, CPU, {"outcome": "measured", "timing": TIMING})
