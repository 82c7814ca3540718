"""``vramcalc trace``: the estimate beside the real libraries, and the first tensor where they part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command import process, run
from configs import CONFIGS, write_config

from vramcalc import estimate
from vramcalc.accuracy.traces import compare
from vramcalc.accuracy.traces.compare import trace_and_estimate
from vramcalc.accuracy.traces.first_difference import first_difference
from vramcalc.inputs.hf_config import to_spec
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.trace.result import Trace
from vramcalc.profiling.trace.trace import trace

pytestmark = pytest.mark.trace

LENGTHS = (100, 100)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny") / "config.json", CONFIGS["llama"])


@pytest.fixture(scope="module")
def traced() -> Trace:
    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=LENGTHS[0])
    return trace(job.model, job.method, job.training, job.stack)


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_trace_and_an_estimate_that_agree_end_with_zero(tiny: Path) -> None:
    ran = run("trace", tiny, "--seq-len", 100, "--json")
    assert ran.status == 0
    found = ran.json
    assert found["agrees"] is True
    assert found["difference"] is None
    assert found["traced"]["allocated_bytes"] == found["predicted"]["allocated_bytes"]
    assert found["traced"]["reserved_bytes"] == found["predicted"]["reserved_bytes"]
    assert found["traced"]["instant"].startswith("step1.0.backward: ")
    assert set(found["versions"]) >= {"torch", "transformers", "peft", "bitsandbytes"}


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "qlora", "--autocast", "bfloat16", "--expandable-segments"),
        ("--method", "full", "--empty-cache-steps", "4", "--gpu", "h100-sxm"),
        ("--method", "lora", "--gradient-accumulation-steps", "3", "--gradient-checkpointing", "reentrant"),
    ],
    ids=" ".join,
)
def test_options_are_those_of_estimate(tiny: Path, options: tuple[str, ...]) -> None:
    found = run("trace", tiny, "--seq-len", 60, *options, "--json").json
    predicted = run("estimate", tiny, "--seq-len", 60, *options, "--json").json
    assert found["predicted"]["allocated_bytes"] == predicted["allocated_bytes"]
    if "qlora" not in options:  # which reads its model in 16 bits first; a trace begins when it is loaded
        assert found["predicted"]["reserved_bytes"] == predicted["reserved_bytes"]
    assert abs(found["allocated_error"]) <= 2e-4
    assert abs(found["reserved_error"]) <= 5e-3


def test_layers_are_built_instead_of_the_models_own(tiny: Path) -> None:
    one, all_three = (run("trace", tiny, "--seq-len", 60, *more, "--json").json for more in (("--layers", 1), ()))
    assert (one["layers"], all_three["layers"]) == (1, 3)
    assert one["traced"]["allocated_bytes"] < all_three["traced"]["allocated_bytes"]
    assert one["agrees"]
    assert all_three["agrees"]


@pytest.mark.parametrize("layers", ["0", "-1", "two"])
def test_layers_are_a_number_of_at_least_one(tiny: Path, layers: str) -> None:
    ran = run("trace", tiny, "--layers", layers)
    assert ran.status == 2
    assert layers in ran.err
    assert "at least 1" in ran.err or "a whole number" in ran.err


def test_stdout_holds_the_answer_alone(tiny: Path) -> None:
    ran = process("trace", tiny, "--seq-len", 60, "--layers", 1)
    assert ran.status == 0
    assert "1 layers: LoRA" in ran.out.splitlines()[0]
    assert "Allocated peaks agree" in ran.out.splitlines()[-1]
    for row in ("allocated", "reserved", "traced peak", "predicted peak", "traced with torch"):
        assert row in ran.out


def test_a_missing_library_is_one_line_that_names_the_extra(tiny: Path) -> None:
    script = "import sys\nsys.modules['torch'] = None\nfrom vramcalc.__main__ import main\nmain()\n"
    ran = process("trace", tiny, python=("-c", script))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert "torch" in ran.err
    assert "pip install '.[profile]'" in ran.err


def test_nothing_of_torch_is_imported_for_other_commands(tiny: Path) -> None:
    script = (
        "import sys\nfrom vramcalc.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    assert process("estimate", tiny, python=("-c", script)).err.endswith("False\n")


# -- where they differ -------------------------------------------------------------------------------------------------


def test_a_job_without_a_difference_has_no_first_row(traced: Trace) -> None:
    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=LENGTHS[0])
    assert first_difference(traced, traced.peak()[1], job, LENGTHS) is None


def test_a_tensor_that_only_the_trace_has_is_named(traced: Trace) -> None:
    """A loop that keeps its outputs has logits alive in the backward pass."""
    kept, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=100, keeps_outputs="step")
    found = trace(kept.model, kept.method, kept.training, kept.stack)
    plain, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=100)
    row = first_difference(found, found.peak()[1], plain, LENGTHS)
    assert row is not None
    assert (row.side, row.what, row.shape, row.dtype) == ("trace", "_to_copy", (1, 100, 512), "float32")
    assert (row.n_bytes, row.phase) == (100 * 512 * 4, "step1.0.forward")
    row = first_difference(traced, traced.peak()[1], kept, LENGTHS)
    assert row is not None
    assert (row.side, row.n_bytes, row.phase) == ("prediction", 100 * 512 * 4, "step1.0.head")


def test_a_parameter_that_only_one_side_has_is_named(traced: Trace) -> None:
    spec = to_spec(CONFIGS["llama"], "llama")
    tied, _ = make_job(spec.replace(tie_word_embeddings=True), "lora", seq_len=100)
    row = first_difference(traced, traced.peak()[1], tied, LENGTHS)
    assert row is not None
    assert (row.side, row.dtype, row.shape, row.phase) == ("trace", "bfloat16", (512, 64), "load")
    assert "weight" in row.module


def test_a_difference_is_told_and_ends_with_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of another job, as if the libraries did something that the estimate does not know."""
    kept, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=100, keeps_outputs="step")
    found = trace(kept.model, kept.method, kept.training, kept.stack)
    monkeypatch.setattr(compare, "_traced", lambda *_: found)
    ran = run("trace", tiny, "--seq-len", 100)
    assert ran.status == 1
    assert "DIFFER" in ran.out
    told = ran.out.splitlines()[-2:]
    assert "alive in the trace, not in the prediction" in told[0]
    assert "_to_copy, 1 x 100 x 512, fp32, 204,800 bytes, made in step1.0.forward" in told[1]
    shown = run("trace", tiny, "--seq-len", 100, "--json")
    assert shown.status == 1
    assert shown.json["difference"]["side"] == "trace"


# -- the trace's own numbers -------------------------------------------------------------------------------------------


def test_a_replay_takes_at_least_what_is_alive(traced: Trace) -> None:
    allocated, at = traced.peak()
    replayed = traced.replay()
    assert allocated == sum(a.size for a in traced.live_at(at)) == max(traced.phases.values())
    assert allocated <= replayed.peak_allocated_bytes <= replayed.peak_reserved_bytes


def test_what_loading_drops_is_no_part_of_the_replay(traced: Trace) -> None:
    spike = replace(traced.allocations[0], id=len(traced.allocations), n_bytes=1 << 30)
    padded = Trace(
        [*traced.allocations, spike],
        [spike.id, ~spike.id, *traced.events],
        [(at + 2, phase) for at, phase in traced.marks],
        traced.start + 2,
    )
    assert padded.replay() == traced.replay()
    assert padded.peak()[0] == traced.peak()[0]


def test_python_gives_what_the_command_prints(tiny: Path) -> None:
    found = trace_and_estimate(str(tiny), "lora", seq_len=60, layers=1)
    assert found.to_dict() == run("trace", tiny, "--seq-len", 60, "--layers", 1, "--json").json
    assert found.estimate.allocated_bytes == found.predicted.allocated_bytes
    assert estimate(found.estimate.job.model, "lora", seq_len=60).allocated_bytes == found.predicted.allocated_bytes
