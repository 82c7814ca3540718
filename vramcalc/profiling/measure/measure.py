"""One job, run on a real device and measured: memory by phase and by process, speed, the smallest memory that does.

What comes out are the parts of a profile row as plain values; ``profiles.ProfileRow`` says what each means.
"""

from __future__ import annotations

import gc
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vramcalc.inputs.machine.device_use import DeviceUse, Polled
from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec
from vramcalc.profiling.measure import live_blocks
from vramcalc.profiling.measure.device import Device
from vramcalc.profiling.measure.phases import PhasePeaks, Unmarked, moment, timing
from vramcalc.profiling.measure.smallest import search
from vramcalc.profiling.real.build import attention_of, build, seen_backend
from vramcalc.profiling.real.libraries import after_step, torch_dtype
from vramcalc.profiling.real.loop import Loop, Marker
from vramcalc.profiling.real.optimizers import build_optimizer, forget_optimizers
from vramcalc.units import MIB

MEASURED_STEPS = 3
"""The first makes optimizer states, the second has them, the third shows that nothing grows."""
WARMUP_STEPS = 2
TIMED_STEPS = 5
_TRIAL_STEPS = 2
_STATE_STEPS = 25
"""Loss scaling skips the first optimizer steps, at most about this many."""
_RESIDUE_BYTES = 64 * MIB
_TRIED = re.compile(r"Tried to allocate ([0-9.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class RealLoop(Loop):
    """The loop of a recipe on tokens that have values."""

    vocab_size = 2

    def batch(self, seq_len: int) -> dict[str, torch.Tensor]:
        """Random tokens; a padded batch misses one token, so that attention has a mask."""
        shape = (self.training.micro_batch_size, seq_len)
        ids = torch.randint(self.vocab_size, shape, device=self.device)
        labels, mask = ids.clone(), torch.ones_like(ids)
        if self.training.padded:
            mask[0, -1] = 0
            labels[0, -1] = -100
        batch = {"input_ids": ids, "labels": labels}
        return {**batch, "attention_mask": mask} if self.stack.passes_attention_mask else batch


class Run:
    """A job on a device, from nothing to a loop that steps.

    Args:
        model: what to build.
        method: what trains.
        training: batch, length, optimizer, checkpointing.
        stack: the recipe.
        device: where.
    """

    def __init__(self, model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack, device: Device) -> None:
        self.model, self.method, self.training, self.stack, self.device = model, method, training, stack, device
        self.made = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length of each measured step; where the cache is emptied, it is emptied once."""
        steps = max(MEASURED_STEPS, (self.stack.empty_cache_steps or 0) + 1)
        return self.training.seq_lens or (self.training.seq_len,) * steps

    def loop(self, marker: Marker) -> Loop:
        """Model, optimizer and loop; loading's leftovers are given back, as they say nothing about a step."""
        built: nn.Module = build(self.model, self.method, self.training, self.stack, self.device.name)
        optimizer, after = build_optimizer(built, self.training, self.stack), after_step(built, self.method)
        loop = RealLoop(built, optimizer, self.training, self.stack, marker, after)
        loop.vocab_size = self.model.vocab_size
        self.made = 0
        return loop

    def step(self, loop: Loop, seq_len: int) -> None:
        """One optimizer step, and the cache emptied where the recipe does."""
        every = self.stack.empty_cache_steps
        if every and self.made and self.made % every == 0:
            self.device.empty()
        loop.step(self.made, seq_len)
        self.made += 1


class Measurement:
    """What is known so far of one job; an error anywhere leaves what was measured before it.

    Args:
        run: the job.
        use: NVML's view of the device, None where there is none.
    """

    def __init__(self, run: Run, use: DeviceUse | None) -> None:
        self.run, self.device, self.use = run, run.device, use
        self.found: dict[str, Any] = {"outcome": "measured", "notes": []}
        self.memory: dict[str, Any] = {}
        self.phases: PhasePeaks | None = None
        self.stage = "start"

    def take(self, *, find_smallest: bool, blocks: int) -> dict[str, Any]:
        """Run everything; failures are part of the answer."""
        began = time.perf_counter()
        try:
            with attention_of(self.run.stack):
                self._all(find_smallest=find_smallest, blocks=blocks)
        except Exception as err:
            self._failed(err)
        if self.phases is not None and self.stage in ("load", "steps"):
            self.memory |= self.phases.done()
        if self.memory:
            self.found["memory"] = self.memory
        self.found["wall_s"] = time.perf_counter() - began
        return self.found

    def _all(self, *, find_smallest: bool, blocks: int) -> None:
        self._start()
        self.stage = "load"
        self.phases = PhasePeaks(self.device)
        loop = self.run.loop(self.phases)
        self.phases.mark("load.between")
        self.device.empty()
        self._moment("loaded")
        self.stage = "steps"
        self._measured_steps(loop)
        self._timed_steps(loop)
        if blocks:
            self.stage = "blocks"
            self._blocks(loop, blocks)
        del loop
        if find_smallest and self.memory.get("whole"):
            self.stage = "smallest"
            self._smallest()

    def _start(self) -> None:
        self._moment("before_cuda")
        self.device.start()
        self.found["facts"] = self.device.facts()
        self._moment("context")
        self.device.first_product(torch_dtype(self.run.stack.autocast or self.run.stack.dtype))
        self._moment("blas")

    def _moment(self, name: str) -> None:
        # Asking torch for anything would make the context that is still missing before the start.
        reserved = 0 if name == "before_cuda" else self.device.reserved()
        if self.use is not None and reserved is not None:
            if name != "before_cuda":
                self.device.synchronize()
            self.memory[name] = moment(self.use, reserved)

    def _measured_steps(self, loop: Loop) -> None:
        assert self.phases is not None
        polled = Polled(self.use) if self.use is not None else None
        try:
            if polled is not None:
                polled.__enter__()
            with seen_backend() as backends:
                for n, seq_len in enumerate(self.run.lengths):
                    self.run.step(loop, seq_len)
                    if n == 0:
                        self._moment("first_step")
            self._until_states(loop)
            self.device.synchronize()
        finally:
            if polled is not None:
                polled.__exit__(None, None, None)
                self.memory |= {"device_used_peak_bytes": polled.peak_bytes, "samples": polled.samples}
        self.found["sdpa_backend"] = backends[0] if backends else None
        self._moment("end")
        self.memory |= self.phases.done()
        self.phases = None

    def _until_states(self, loop: Loop) -> None:
        """Loss scaling skips optimizer steps until its scale is low enough; then two more steps, now with states."""
        if loop.scaler is None:
            return
        for _ in range(_STATE_STEPS):
            if any(loop.optimizer.state.values()):
                break
            self.run.step(loop, self.run.training.seq_len)
        else:
            self.found["notes"].append("loss scaling skipped every optimizer step: optimizer states are missing")
        for _ in range(2):
            self.run.step(loop, self.run.training.seq_len)

    def _timed_steps(self, loop: Loop) -> None:
        loop.marker = Unmarked()
        training = self.run.training
        times = []
        for n in range(WARMUP_STEPS + TIMED_STEPS):
            self.device.synchronize()
            began = time.perf_counter()
            self.run.step(loop, training.seq_len)
            self.device.synchronize()
            if n >= WARMUP_STEPS:
                times.append(time.perf_counter() - began)
        tokens = training.micro_batch_size * training.seq_len * training.gradient_accumulation_steps
        self.found["timing"] = timing(times, self.run.made - TIMED_STEPS, tokens)

    def _blocks(self, loop: Loop, n: int) -> None:
        with self.device.history(live_blocks.MAX_ENTRIES) as snapshot:
            self.run.step(loop, self.run.training.seq_len)
            taken = snapshot()
        if taken is not None:
            self.found["blocks"] = live_blocks.largest(live_blocks.peak_blocks(taken), n)

    def _smallest(self) -> None:
        residue = [0]
        most = self.found["facts"]["torch_total_bytes"]
        load, whole = self.memory["load"], self.memory["whole"]

        def runs(limit: int) -> bool:
            forget_optimizers()
            self.device.clean()
            residue[0] = max(residue[0], self.device.reserved() or 0)
            self.device.limit(limit)
            try:
                return self._trial()
            finally:
                self.device.limit(None)

        found = search(
            runs,
            allocated_bytes=max(load["allocated_bytes"], whole["allocated_bytes"]),
            reserved_bytes=max(load["reserved_bytes"], whole["reserved_bytes"]),
            most_bytes=most,
        )
        if found is None:
            self.found["notes"].append("smallest memory: the job did not run again in the memory it had reserved")
        elif residue[0] > _RESIDUE_BYTES:
            self.found["notes"].append(f"smallest memory: {residue[0]:,} bytes of a trial were left over; not recorded")
        else:
            trials = [{"limit_bytes": limit, "suffices": ran} for limit, ran in found.trials]
            self.found["smallest"] = {**vars(found), "trials": trials, "residue_bytes": residue[0]}

    def _trial(self) -> bool:
        """Whether the job runs now."""
        return ran_in_memory(self._trial_steps, self.device)

    def _trial_steps(self) -> None:
        loop = self.run.loop(Unmarked())
        self.device.empty()
        for seq_len in self.run.training.seq_lens or (self.run.training.seq_len,) * _TRIAL_STEPS:
            self.run.step(loop, seq_len)
        self.device.synchronize()

    def _failed(self, err: Exception) -> None:
        # A device without room for its own context can measure nothing.
        out = isinstance(err, self.device.out_of_memory) and self.stage != "start"
        phase = self.phases.phase if self.phases is not None else self.stage
        text = str(err) if out else "".join(traceback.format_exception(err))[-4000:]
        if self.stage in ("blocks", "smallest"):
            # The measurement itself is complete.
            self.found["notes"].append(f"{self.stage}: {type(err).__name__}: {str(err)[:500]}")
            return
        failure = {"kind": type(err).__name__, "message": text, "phase": phase, "asked_bytes": asked_bytes(str(err))}
        self.found |= {"outcome": "out_of_memory" if out else "failed", "failure": failure}


def ran_in_memory(steps: Callable[[], None], device: Device) -> bool:
    """Whether something runs without the device running out of memory; nothing of it is left alive."""
    try:
        steps()
    except device.out_of_memory as err:
        # Frames of the traceback hold tensors.
        traceback.clear_frames(err.__traceback__)
        return False
    finally:
        gc.collect()
    return True


def asked_bytes(message: str) -> int | None:
    """The size of the request that failed, as torch's error tells it: rounded to hundredths of a unit. [B]"""
    match = _TRIED.search(message)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None
