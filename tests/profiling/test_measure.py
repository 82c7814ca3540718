"""Measuring: the model that is run is the one that is predicted, phases add up, and every failure is a row.

What a GPU counts is counted here by a device of the tests on real tensors; only the calls of ``torch.cuda`` themselves
wait for a GPU.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import process, run
from configs import CONFIGS, write_config
from counted_device import CONTEXT, OTHERS, CountedDevice, CountedUse
from hypothesis import given
from hypothesis import strategies as st
from profile_rows import CPU, recipe

from vramcalc.errors import MissingExtra
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import QLoRA
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.campaign import planned_job
from vramcalc.profiling.in_a_process import CannotMeasure, Place, Worker, environment, made_row, place
from vramcalc.profiling.measure import smallest as smallest_memory
from vramcalc.profiling.measure.device import Cpu, Cuda, Device
from vramcalc.profiling.measure.live_blocks import largest, peak_blocks
from vramcalc.profiling.measure.measure import Measurement, Run, asked_bytes
from vramcalc.profiling.measure.phases import PhasePeaks
from vramcalc.profiling.measure.smallest import resolution_of, search
from vramcalc.profiling.real.build import attention_of, build, quantised_model
from vramcalc.profiling.real.libraries import attach, build_model
from vramcalc.profiling.real.optimizers import forget_optimizers
from vramcalc.profiling.row_figures import inconsistencies
from vramcalc.profiling.rows import ProfileRow, RunSettings, read_profiles
from vramcalc.profiling.trace import fake_device as fake
from vramcalc.units import MIB

pytestmark = pytest.mark.trace
WIDE = {"vocab_size": 8_000}


@pytest.fixture(scope="module")
def imported() -> None:
    """Libraries make tables of their own when they are imported and first used."""
    assert take(job(method="qlora"), Cpu())["outcome"] == "measured"


def job(arch: str = "llama", method: str = "lora", *, changes: dict[str, Any] | None = None, **settings: Any) -> Job:
    spec = to_spec(CONFIGS[arch], arch).replace(**{"num_hidden_layers": 1, **(changes or {})})
    found, _ = make_job(spec, method, **{"seq_len": 32, **settings})
    return found


def take(asked: Job, device: Any, use: Any = None, *, find_smallest: bool = False, blocks: int = 0) -> dict[str, Any]:
    run_ = Run(asked.model, asked.method, asked.training, asked.stack, device)
    return Measurement(run_, use).take(find_smallest=find_smallest, blocks=blocks)


def row_of(asked: Job, found: dict[str, Any]) -> ProfileRow:
    """As if the counted device were a GPU."""
    made = RunSettings(
        model=asked.model, method=asked.method, training=asked.training, stack=asked.stack, device="cuda"
    )
    return made_row(made, Place("cuda"), found)


# -- the model ---------------------------------------------------------------------------------------------------------

BUILDS: list[tuple[str, str, dict[str, Any]]] = [
    *((arch, method, {}) for arch in CONFIGS for method in ("full", "lora", "qlora") if arch != "mixtral"),
    ("mixtral", "full", {}),
    ("llama", "qlora", {"stack": "trl-sft", "loss": "full"}),
    ("qwen2", "qlora", {"prepare_model_for_kbit_training": False, "bnb_4bit_use_double_quant": False}),
    ("qwen3", "lora", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"], "adapter_dtype": "weights"}),
]


def layout(model: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    found = {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}
    return found | {n: (b.shape, b.dtype, False) for n, b in model.named_buffers()}


@pytest.mark.parametrize(("arch", "method", "settings"), BUILDS, ids=str)
def test_what_is_run_is_what_is_traced(arch: str, method: str, settings: dict[str, Any]) -> None:
    asked = job(arch, method, **settings)
    real = build(asked.model, asked.method, asked.training, asked.stack, "cpu")
    with torch.device("cpu"):
        traced = build_model(asked.model, asked.stack)
    if method == "qlora":
        fake.quantize_linears(traced, asked.method)
    traced = attach(traced, asked.method, asked.training, asked.stack, prepare_kbit=fake.prepare_kbit)
    assert layout(real) == layout(traced)
    tied = [
        p.untyped_storage()._cdata for p in (real.get_input_embeddings().weight, real.get_output_embeddings().weight)
    ]
    assert (tied[0] == tied[1]) == (asked.model.tie_word_embeddings and not settings.get("modules_to_save"))


def test_four_bit_weights_are_made_one_at_a_time() -> None:
    asked = job("llama", "qlora", changes={"num_hidden_layers": 12, "vocab_size": 64})
    assert isinstance(asked.method, QLoRA)
    with CountedDevice() as device:
        model = quantised_model(asked.model, asked.method, asked.stack, "cpu")
    bf16 = 2 * asked.model.params_total
    # With every weight in 16 bits at once, the peak would lie above their sum.
    assert device.highest < 0.6 * bf16
    del model


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_the_kernel_of_the_recipe_is_the_one_that_runs(kernel: str) -> None:
    found = take(job(sdpa_kernel=kernel), Cpu())
    assert found["sdpa_backend"] == {"flash": "flash_attention", "math": "math"}[kernel]


def test_key_heads_are_repeated_only_inside_and_only_when_asked() -> None:
    from transformers.integrations import sdpa_attention

    before = sdpa_attention.use_gqa_in_sdpa
    with attention_of(job(repeats_kv=True).stack):
        assert sdpa_attention.use_gqa_in_sdpa is not before
    assert sdpa_attention.use_gqa_in_sdpa is before


# -- phases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {}),
        ("lora", {"gradient_accumulation_steps": 2, "padded": True}),
        ("qlora", {"gradient_checkpointing": "non_reentrant", "optim": "adamw_bnb_8bit"}),
        ("full", {"dtype": "float32", "autocast": "float16"}),
        ("lora", {"stack": "peft-loop", "empty_cache_steps": 4}),
        ("full", {"seq_lens": [16, 48, 32]}),
        ("lora", {"attn_implementation": "eager", "zero_grad": "start", "keeps_outputs": "step"}),
    ],
    ids=str,
)
def test_a_measurement_is_complete_and_holds_together(method: str, settings: dict[str, Any]) -> None:
    settings = {**settings} if "seq_lens" in settings else {"seq_len": 32, **settings}
    spec = to_spec(CONFIGS["llama"], "llama").replace(num_hidden_layers=2)
    asked, _ = make_job(spec, method, **settings)
    with CountedDevice() as device:
        found = take(asked, device, blocks=3)
    assert found["outcome"] == "measured", found.get("failure")
    assert found["notes"] == []
    made = row_of(asked, found)
    assert inconsistencies(made) == []
    memory = made.memory
    assert memory
    assert None not in (memory.load, memory.forward, memory.backward, memory.optimizer, memory.whole)
    assert made.timing
    tokens = asked.training.micro_batch_size * asked.training.seq_len * asked.training.gradient_accumulation_steps
    assert made.timing.tokens_per_s == pytest.approx(tokens / made.timing.step_s)
    assert sorted(made.timing.steps_s)[2] == made.timing.step_s
    assert made.blocks
    assert made.blocks[0].where == "a.py:1 f"


def test_a_phase_is_as_high_as_what_was_alive_in_it() -> None:
    device = CountedDevice()
    with device:
        phases = PhasePeaks(device)
        kept = torch.empty(1000, dtype=torch.uint8)
        phases.mark("step0.0.forward")
        for_a_moment = torch.empty(5000, dtype=torch.uint8)
        del for_a_moment
        phases.mark("step0.0.backward")
        phases.mark("step0.optimizer")
        more = torch.empty(300, dtype=torch.uint8)
        phases.mark("step0.zero_grad")
        huge = torch.empty(9000, dtype=torch.uint8)
        found = phases.done()
    del kept, more, huge
    assert {n: p["allocated_bytes"] for n, p in found.items()} == {
        "load": 1000, "forward": 6000, "backward": 1000, "optimizer": 1300, "whole": 10_300,
    }  # fmt: skip


@pytest.mark.parametrize("tells_process", [True, False])
def test_the_context_is_what_the_process_has_beside_torchs_allocator(tells_process: bool) -> None:
    asked = job(method="full", changes=WIDE)
    with CountedDevice() as device:
        found = take(asked, device, CountedUse(device, tells_process=tells_process))
    assert found["outcome"] == "measured", found.get("failure")
    made = row_of(asked, found)
    assert inconsistencies(made) == []
    memory = made.memory
    assert memory
    assert memory.context_bytes == CONTEXT
    assert memory.before_cuda
    assert memory.before_cuda.device_used_bytes == OTHERS
    for moment in (memory.context, memory.blas, memory.loaded, memory.first_step, memory.end):
        assert moment
        assert moment.device_used_bytes == OTHERS + CONTEXT + moment.reserved_bytes
        assert (moment.process_bytes is not None) == tells_process
    assert memory.samples > 0
    assert memory.device_used_peak_bytes
    assert memory.whole
    # Samples may miss the highest instant, never exceed it.
    assert memory.device_used_peak_bytes <= OTHERS + CONTEXT + memory.whole.reserved_bytes


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {"optim": "adamw_bnb_8bit"}),
        ("full", {"autocast": "float16", "dtype": "float32", "keeps_outputs": "next_forward"}),
        ("lora", {"gradient_checkpointing": "reentrant", "modules_to_save": ["embed_tokens"]}),
        ("qlora", {"gradient_checkpointing": "non_reentrant", "optim": "paged_adamw_8bit"}),
        ("full", {"optim": "adafactor", "attn_implementation": "eager"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fails", [False, True], ids=["runs", "out of memory"])
@pytest.mark.usefixtures("imported")
def test_a_trial_leaves_nothing_alive(method: str, settings: dict[str, Any], fails: bool) -> None:
    asked = job(method=method, changes=WIDE, **settings)
    with CountedDevice() as device, attention_of(asked.stack):
        found = Measurement(Run(asked.model, asked.method, asked.training, asked.stack, device), None)
        device.start()
        found._trial()
        forget_optimizers()
        device.clean()
        left, highest = device.now, device.highest
        device.limit(highest * 3 // 4 if fails else None)
        assert found._trial() != fails
        forget_optimizers()
        device.clean()
        assert device.now <= left < highest // 20


def test_more_tokens_take_more_memory_and_accumulation_takes_no_more_activations() -> None:
    def whole(**settings: Any) -> int:
        with CountedDevice() as device:
            found = take(job(changes=WIDE, **settings), device)
        peak: int = found["memory"]["whole"]["allocated_bytes"]
        return peak

    one = whole(seq_len=64)
    assert whole(seq_len=128) > 1.5 * one
    assert whole(seq_len=64, gradient_accumulation_steps=2) < 1.2 * one


# -- out of memory, and other failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity_mib", "phase"), [(1, "load"), (12, "forward")])
def test_out_of_memory_is_a_result_with_its_phase_and_what_was_asked_for(capacity_mib: int, phase: str) -> None:
    asked = job(changes=WIDE, seq_len=512)
    with CountedDevice(capacity_mib * MIB) as device:
        found = take(asked, device)
    assert found["outcome"] == "out_of_memory"
    assert found["failure"]["phase"] == phase
    assert found["failure"]["asked_bytes"] > 0
    made = row_of(asked, found)
    assert made.memory
    assert made.memory.load
    assert inconsistencies(made) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity", 5 * (1 << 29)),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU", 20 * MIB),
        ("Tried to allocate 512 bytes", 512),
        ("CUDA error: out of memory", None),
    ],
)
def test_the_size_of_a_request_is_read_off_torchs_error(message: str, expected: int | None) -> None:
    assert asked_bytes(message) == expected


class Broken(CountedDevice):
    """Fails when it is asked for one thing."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "__dict__").get("where"):
            raise RuntimeError(f"no {name}")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(("where", "phase"), [("start", "start"), ("empty", "between")])
def test_another_failure_is_a_row_with_its_text(where: str, phase: str) -> None:
    with Broken(where) as device:
        found = take(job(), device)
    assert found["outcome"] == "failed"
    assert found["failure"]["phase"] == phase
    assert f"RuntimeError: no {where}" in found["failure"]["message"]


def test_a_failure_after_the_measurement_leaves_it_whole() -> None:
    with Broken("history") as device:
        found = take(job(), device, blocks=3)
    assert found["outcome"] == "measured"
    assert found["notes"] == ["blocks: RuntimeError: no history"]
    assert inconsistencies(row_of(job(), found)) == []


# -- the smallest memory -----------------------------------------------------------------------------------------------


@given(
    allocated=st.integers(MIB, 70 << 30), above=st.integers(0, 8 << 30), share=st.floats(0, 1), most=st.just(80 << 30)
)
def test_bisection_ends_at_the_smallest_limit_that_does(allocated: int, above: int, share: float, most: int) -> None:
    reserved = allocated + above
    truth = allocated + int(share * above)
    found = search(lambda limit: limit >= truth, allocated_bytes=allocated, reserved_bytes=reserved, most_bytes=most)
    assert found
    assert found.fails_bytes < truth <= found.suffices_bytes
    assert found.suffices_bytes - found.fails_bytes <= found.resolution_bytes + 2 * MIB
    assert found.resolution_bytes == resolution_of(reserved)
    assert all(ran == (limit >= truth) for limit, ran in found.trials)
    assert (found.suffices_bytes, True) in found.trials
    assert len(found.trials) <= 10


def test_a_job_that_does_not_run_again_has_no_smallest_memory() -> None:
    assert search(lambda _: False, allocated_bytes=MIB, reserved_bytes=1 << 30, most_bytes=2 << 30) is None
    assert search(lambda _: False, allocated_bytes=MIB, reserved_bytes=1 << 30, most_bytes=1 << 30) is None


def test_the_smallest_memory_of_a_job_is_found_by_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smallest_memory, "LEAST_BYTES", MIB // 4)
    monkeypatch.setattr(smallest_memory, "GRAIN_BYTES", 512)
    asked = job(changes=WIDE, seq_len=64)
    with CountedDevice() as device:
        found = take(asked, device, find_smallest=True)
        left = device.now
        assert device.allowed == device.capacity
    assert left < MIB // 4
    made = row_of(asked, found)
    assert inconsistencies(made) == []
    smallest, memory = made.smallest, made.memory
    assert smallest
    assert memory
    assert memory.whole
    # The device of the tests packs perfectly under pressure: what is allocated does.
    assert smallest.suffices_bytes - memory.whole.allocated_bytes <= smallest.resolution_bytes
    assert smallest.suffices_bytes < memory.whole.reserved_bytes
    assert {t.suffices for t in smallest.trials} == {True} or smallest.fails_bytes in {
        t.limit_bytes for t in smallest.trials if not t.suffices
    }


# -- blocks alive at the peak ------------------------------------------------------------------------------------------


def entry(action: str, address: int, size: int, line: int = 0) -> dict[str, Any]:
    frames = [
        {"filename": "/env/site-packages/torch/nn/modules/linear.py", "line": 1, "name": "forward"},
        {"filename": "/env/site-packages/transformers/models/x.py", "line": line, "name": "forward"},
    ]
    return {"action": action, "addr": address, "size": size, "frames": frames if action == "alloc" else []}


def test_blocks_are_those_alive_when_their_sum_was_highest() -> None:
    trace = [
        entry("alloc", 10, 100, 1),
        entry("alloc", 20, 50, 2),
        entry("free_requested", 10, 100),
        entry("free_completed", 10, 100),
        entry("alloc", 10, 30, 3),
        entry("segment_alloc", 0, 1 << 20),
        entry("free_completed", 20, 50),
    ]
    blocks = [
        {"address": 5, "size": 7, "state": "active_allocated", "frames": []},
        {"address": 10, "size": 30, "state": "active_allocated", "frames": trace[4]["frames"]},
        {"address": 20, "size": 50, "state": "inactive", "frames": []},
    ]
    snapshot = {"segments": [{"address": 5, "device": 0, "blocks": blocks}], "device_traces": [trace]}
    found = sorted(peak_blocks(snapshot))
    assert [size for size, _ in found] == [7, 50, 100]
    assert [where for _, where in found] == [
        "", "transformers/models/x.py:2 forward", "transformers/models/x.py:1 forward",
    ]  # fmt: skip
    assert [(b["n_bytes"], b["count"]) for b in largest([(1, "a"), (2, "b"), (3, "a")], 1)] == [(4, 2)]


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.json", CONFIGS["llama"])


def test_on_a_cpu_the_command_measures_speed_says_so_and_adds_a_row(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    asked = ("profile", tiny, "--device", "cpu", "--seq-len", 32, "--rank", 4, "--output", output)
    ran = process(*asked)
    assert ran.status == 0, ran.err
    assert "memory: not measured on a CPU" in ran.out
    assert f"added to {output}" in ran.out
    (row,) = read_profiles(output)
    assert row.memory is None
    assert row.machine.gpu is None
    assert row.timing
    assert row.timing.step_s > 0
    assert row.versions["torch"] == torch.__version__
    assert row.recipe == recipe(where=CPU, model=str(tiny), seq_len=32, rank=4)
    assert inconsistencies(row) == []


def test_a_campaign_measures_each_job_in_a_process_of_its_own_and_resumes(tiny: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "rows.jsonl", tmp_path / "c.yaml"
    text.write_text(f"jobs:\n- {{model: {tiny}, seq_len: 16}}\n- {{model: {tiny}, seq_len: 16, method: full}}\n")
    ran = process("campaign", text, "--device", "cpu", "--output", output, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["outcomes"] == {"measured": 2}
    # No progress bar where nobody looks.
    assert ran.err == ""
    assert [r.recipe.method.kind for r in read_profiles(output)] == ["lora", "full"]
    again = process("campaign", text, "--device", "cpu", "--output", output, "--json")
    assert (again.json["outcomes"], again.json["resumed"]) == ({}, 2)


def test_a_worker_that_is_killed_leaves_a_row_that_says_so() -> None:
    with Worker(recipe(where=CPU), CPU) as worker:
        worker._process.send_signal(signal.SIGKILL)
        row = worker.row()
    assert row.outcome == "failed"
    assert row.failure
    assert row.failure.kind == "Signal SIGKILL"
    assert inconsistencies(row) == []


def test_a_worker_that_takes_too_long_is_given_up() -> None:
    long = planned_job({"model": "llama-3.1-8b", "method": "full", "device": "cpu", "layers": 2}, CPU).recipe
    with Worker(long, CPU) as worker:
        row = worker.row(limit_s=0.2)
    assert row.failure
    assert row.failure.kind == "TimeLimit"
    assert "gave up after 0.2 s" in row.failure.message


def test_a_worker_without_its_libraries_is_an_error_and_no_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with Worker(recipe(where=CPU), CPU) as worker, pytest.raises(CannotMeasure, match="no torch here"):
        worker.row()


def test_a_worker_ends_with_its_parent(tiny: Path) -> None:
    script = (
        "import sys; from profile_rows import CPU, recipe; from vramcalc.profiling.in_a_process import Worker\n"
        "worker = Worker(recipe(where=CPU), CPU); print(worker._process.pid, flush=True); sys.stdin.read()"
    )
    environment_ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environment_, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    watched = os.pidfd_open(pid)
    parent.kill()
    parent.communicate()
    ready, _, _ = select.select([watched], [], [], 120)
    os.close(watched)
    assert ready


def test_the_allocators_settings_are_the_recipes_and_not_the_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("KEPT", "1")
    found = environment(recipe().stack)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in found
    assert "PYTORCH_ALLOC_CONF" not in found
    assert found["KEPT"] == "1"
    both = environment(recipe(alloc_conf="max_split_size_mb:128", expandable_segments=True).stack)
    assert both["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:128,expandable_segments:True"


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(MissingExtra, match=r"peft is not installed: pip install '\.\[profile\]'"):
        place("cpu")


def test_measuring_without_a_gpu_says_what_to_do(tiny: Path) -> None:
    ran = run("profile", tiny)
    assert ran.status == 2
    assert "--device = 'cuda': expected a GPU" in ran.err


# -- the thin layer over torch.cuda ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Cpu, Cuda, CountedDevice])
def test_devices_answer_the_same_questions(cls: type) -> None:
    for name, question in vars(Device).items():
        if not name.startswith("_") and callable(question):
            answers: Callable[..., Any] = getattr(cls, name)
            asked = list(inspect.signature(question).parameters)
            assert list(inspect.signature(inspect.unwrap(answers)).parameters) == asked, name


CALLS = {
    "init": (), "set_device": (0,), "synchronize": (), "max_memory_allocated": (), "max_memory_reserved": (),
    "memory_reserved": (), "reset_peak_memory_stats": (), "empty_cache": (), "mem_get_info": (),
    "set_per_process_memory_fraction": (0.5,), "memory._snapshot": (),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_is_called_on_a_gpu_is_there_and_takes_these_arguments(name: str) -> None:
    function: Any = torch.cuda
    for part in name.split("."):
        function = getattr(function, part)
    inspect.signature(function).bind(*CALLS[name])
    assert f"torch.cuda.{name}" in inspect.getsource(Cuda)


def test_the_history_of_the_allocator_takes_these_settings() -> None:
    function: Any = torch.cuda.memory._record_memory_history_impl
    inspect.signature(function).bind("all", context="alloc", stacks="python", max_entries=1, clear_history=True)
    inspect.signature(function).bind(None)


def test_answers_are_plain_values() -> None:
    assert json.dumps(take(job(), Cpu()))
