"""A callback for ``transformers.Trainer`` that measures the first steps of a run and sets them beside the prediction.

It never stops a run: what it cannot measure or express it says, once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from vramcalc.errors import VramcalcError
from vramcalc.inputs.machine.device_use import DeviceUse, Polled
from vramcalc.profiling.measure.device import device_named
from vramcalc.profiling.measure.phases import PhasePeaks, moment, timing
from vramcalc.profiling.observed_phases import Watch
from vramcalc.profiling.observed_recipe import Batches, method_of, plain_config, stack_of, training_of

WATCHED_STEPS = 3
"""Steps whose phases are told apart."""
WARMUP_STEPS = 2
TIMED_STEPS = 5


class VramcalcCallback(TrainerCallback):  # type: ignore[misc]
    """Writes a profile row from a training run, and prints predicted against measured after its first step.

    The first ten optimizer steps are measured, three of them phase by phase with torch's peak statistics reset in
    between; then the callback takes itself out. Model and optimizer are already loaded when it starts, so that memory
    of loading is not measured, and what loading left in the allocator's cache counts as reserved.

    Args:
        output: file of rows; by default ``trainer.jsonl`` in the user's data folder.
        show: what is called with lines for the user.
    """

    def __init__(self, output: str | Path | None = None, *, show: Callable[[str], object] = print) -> None:
        self._output, self._show = output, show
        self._batches = Batches()
        self._times: list[float] = []
        self._memory: dict[str, Any] = {}
        self._notes: list[str] = ["measured from the start of training: loading is not part of it"]
        self._steps = 0
        self._over, self._said = True, False
        self.row: Any = None
        """The row that was written, None before."""

    # -- events of Trainer -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Training begins: watch the model."""
        if not state.is_world_process_zero:
            return
        self._over, self._model, self._args = False, model, args
        self._began = time.perf_counter()
        self._guarded(self._begin)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step begins."""
        if self._over:
            return
        self._batches.begin_step()
        if self._steps < WATCHED_STEPS:
            self._watch.begin(self._steps)
        else:
            self._device.synchronize()
            self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step is over."""
        if self._over:
            return
        self._device.synchronize()
        if self._steps >= WATCHED_STEPS + WARMUP_STEPS:
            self._times.append(time.perf_counter() - self._step_began)
        self._steps += 1
        if self._steps == 1:
            self._guarded(self._compare)
        if self._steps == WATCHED_STEPS:
            self._stop_watching()
        if self._steps == WATCHED_STEPS + WARMUP_STEPS + TIMED_STEPS:
            self._finish()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is over: write what there is."""
        if not self._over:
            self._finish()

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        from vramcalc.profiling.in_a_process import place

        self._device = device_named(self._args.device.type)
        self._place = place(self._device.name)
        self._use = DeviceUse(self._place.uuid) if self._place.uuid else None
        self._hook = self._model.register_forward_pre_hook(self._batches.see, with_kwargs=True)
        self._phases = PhasePeaks(self._device)
        self._phases.mark("before.between")
        self._watch = Watch(self._model, self._phases)
        self._polled = Polled(self._use) if self._use else None
        self._watch.__enter__()
        if self._polled is not None:
            self._polled.__enter__()

    def _stop_watching(self) -> None:
        self._watch.__exit__()
        if self._polled is not None:
            self._polled.__exit__(None, None, None)
            self._memory |= {"device_used_peak_bytes": self._polled.peak_bytes, "samples": self._polled.samples}
        reserved = self._device.reserved()
        if self._use is not None and reserved is not None:
            self._memory["end"] = moment(self._use, reserved)
        peaks = self._phases.done()
        peaks.pop("load", None)
        self._memory |= peaks

    def _compare(self) -> None:
        """Predicted and measured, for the one step that was made."""
        from vramcalc import display
        from vramcalc.profiling.row_figures import FirstStep

        self._show(display.text(FirstStep(self._row({}), self._phases.done().get("whole"))))

    def _finish(self) -> None:
        self._over = True
        if self._steps < WATCHED_STEPS:
            self._stop_watching()
        self._hook.remove()
        if self._use is not None:
            self._use.close()
        self._guarded(self._write)

    def _write(self) -> None:
        from vramcalc.profiling.row_log import append
        from vramcalc.profiling.run_campaign import default_output

        path = Path(self._output) if self._output else default_output("trainer")
        self.row = self._row({"memory": self._memory or None, "timing": self._timing()})
        append(path, self.row.to_json())
        self._show(f"vramcalc: measured {self._steps} steps, added to {path}")

    def _timing(self) -> dict[str, Any] | None:
        if len(self._times) < TIMED_STEPS:
            self._notes.append(
                f"{self._steps} steps were made; speed takes {WATCHED_STEPS + WARMUP_STEPS + TIMED_STEPS}"
            )
            return None
        lengths = self._batches.lengths[-TIMED_STEPS:]
        if len(set(lengths)) > 1:
            self._notes.append("steps of different lengths: tokens/s go by their mean length")
        sequences = max(self._batches.sizes) * self._args.gradient_accumulation_steps
        return timing(self._times, WATCHED_STEPS + WARMUP_STEPS, sequences * statistics.mean(lengths))

    def _row(self, found: dict[str, Any]) -> Any:
        from vramcalc.inputs.hf_config import to_spec
        from vramcalc.profiling.in_a_process import made_row
        from vramcalc.profiling.rows import RunSettings

        model: nn.Module = self._model
        config = plain_config(model)
        recipe = RunSettings(
            model=to_spec(config, config.get("_name_or_path") or "unnamed"),
            method=method_of(model),
            training=training_of(model, self._args, self._batches),
            stack=stack_of(model, self._args, self._batches),
            device="cuda" if self._device.name == "cuda" else "cpu",
        )
        if len(self._batches.sizes) > 1:
            self._notes.append("batches of several sizes: the recipe names the largest")
        plain = {
            "outcome": "measured",
            "facts": self._device.facts(),
            "notes": list(dict.fromkeys(self._notes)),
            "wall_s": time.perf_counter() - self._began,
            **found,
        }
        return made_row(recipe, self._place, plain, source="callback")

    def _guarded(self, what: Callable[[], None]) -> None:
        """A run goes on whatever becomes of its measurement."""
        try:
            what()
        except Exception as err:
            if not self._said:
                self._said = True
                self._show(f"vramcalc: this run cannot be measured: {_told(err)}")
            if what == self._begin:
                self._over = True


def _told(err: Exception) -> str:
    return str(err) if isinstance(err, VramcalcError) else f"{type(err).__name__}: {err}"
