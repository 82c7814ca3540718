"""How much GPU memory a fine-tuning run takes, where every byte goes, and whether it fits.

>>> import vramcalc
>>> vramcalc.estimate("llama-3.1-8b", "qlora", micro_batch_size=1, seq_len=2048).allocated_bytes  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vramcalc.version import __version__

_HOME = {
    "estimate": "vramcalc.memory.estimate",
    "estimate_job": "vramcalc.memory.estimate",
    "Estimate": "vramcalc.memory.estimate",
    "estimate_grid": "vramcalc.memory.grid",
    "Grid": "vramcalc.memory.grid",
    "fit": "vramcalc.planning.fit",
    "verdict": "vramcalc.planning.verdict",
    "Verdict": "vramcalc.planning.verdict",
    "max_micro_batch_size": "vramcalc.planning.largest",
    "max_seq_len": "vramcalc.planning.largest",
    "plan": "vramcalc.planning.plan",
    "Plan": "vramcalc.planning.plan",
    "Workload": "vramcalc.planning.workload",
    "planning_table": "vramcalc.show.planning_table",
    "OwnRate": "vramcalc.planning.cost",
    "OwnMachine": "vramcalc.planning.cost",
    "step_time": "vramcalc.timing.step_time",
    "StepTime": "vramcalc.timing.step_time",
    "compare_times": "vramcalc.timing.ratio",
    "TimeRatio": "vramcalc.timing.ratio",
    "step_flops": "vramcalc.timing.flops",
    "detect_gpus": "vramcalc.inputs.machine.detect",
    "read_profiles": "vramcalc.profiling.rows",
    "FullFineTuning": "vramcalc.inputs.stack",
    "LoRA": "vramcalc.inputs.stack",
    "QLoRA": "vramcalc.inputs.stack",
    "DoRA": "vramcalc.inputs.stack",
    "AdaLoRA": "vramcalc.inputs.stack",
    "PromptTuning": "vramcalc.inputs.stack",
    "PTuning": "vramcalc.inputs.stack",
    "PrefixTuning": "vramcalc.inputs.stack",
    "TrainingSpec": "vramcalc.inputs.stack",
    "Stack": "vramcalc.inputs.stack",
    "ModelSpec": "vramcalc.inputs.stack",
    "Gpu": "vramcalc.inputs.stack",
    "VramcalcError": "vramcalc.errors",
}
__all__ = ["__version__", *_HOME]
_MODULES = {"figures": "vramcalc.show.figures"}
"""Modules that are part of the interface; ``from vramcalc import *`` leaves them out."""
_WITH_PROFILE = {"VramcalcCallback": "vramcalc.profiling.callback"}
"""Names that need the extra ``profile``; ``from vramcalc import *`` leaves them out."""

if TYPE_CHECKING:
    from vramcalc.errors import VramcalcError as VramcalcError
    from vramcalc.inputs.machine.detect import detect_gpus as detect_gpus
    from vramcalc.inputs.stack import AdaLoRA as AdaLoRA
    from vramcalc.inputs.stack import DoRA as DoRA
    from vramcalc.inputs.stack import FullFineTuning as FullFineTuning
    from vramcalc.inputs.stack import Gpu as Gpu
    from vramcalc.inputs.stack import LoRA as LoRA
    from vramcalc.inputs.stack import ModelSpec as ModelSpec
    from vramcalc.inputs.stack import PrefixTuning as PrefixTuning
    from vramcalc.inputs.stack import PromptTuning as PromptTuning
    from vramcalc.inputs.stack import PTuning as PTuning
    from vramcalc.inputs.stack import QLoRA as QLoRA
    from vramcalc.inputs.stack import Stack as Stack
    from vramcalc.inputs.stack import TrainingSpec as TrainingSpec
    from vramcalc.memory.estimate import Estimate as Estimate
    from vramcalc.memory.estimate import estimate as estimate
    from vramcalc.memory.estimate import estimate_job as estimate_job
    from vramcalc.memory.grid import Grid as Grid
    from vramcalc.memory.grid import estimate_grid as estimate_grid
    from vramcalc.planning.cost import OwnMachine as OwnMachine
    from vramcalc.planning.cost import OwnRate as OwnRate
    from vramcalc.planning.fit import fit as fit
    from vramcalc.planning.largest import max_micro_batch_size as max_micro_batch_size
    from vramcalc.planning.largest import max_seq_len as max_seq_len
    from vramcalc.planning.plan import Plan as Plan
    from vramcalc.planning.plan import plan as plan
    from vramcalc.planning.verdict import Verdict as Verdict
    from vramcalc.planning.verdict import verdict as verdict
    from vramcalc.planning.workload import Workload as Workload
    from vramcalc.profiling.rows import read_profiles as read_profiles
    from vramcalc.show import figures as figures
    from vramcalc.show.planning_table import planning_table as planning_table
    from vramcalc.timing.flops import step_flops as step_flops
    from vramcalc.timing.ratio import TimeRatio as TimeRatio
    from vramcalc.timing.ratio import compare_times as compare_times
    from vramcalc.timing.step_time import StepTime as StepTime
    from vramcalc.timing.step_time import step_time as step_time


def __getattr__(name: str) -> Any:
    """Names are imported when first used (PEP 562): a shell prompt must not wait for pydantic or numpy."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    home = _HOME.get(name) or _WITH_PROFILE.get(name)
    if home is None:
        raise AttributeError(f"module 'vramcalc' has no attribute {name!r}")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as err:
        if name not in _WITH_PROFILE:
            raise
        from vramcalc.errors import MissingExtra

        raise MissingExtra("profile", f"{name} runs inside transformers' Trainer", [str(err.name)]) from err
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES, *_WITH_PROFILE})
