"""Profile rows: written and read back, refused where they are broken, and never at odds with themselves unseen."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from profile_rows import GIB, H100, MEASURED, OUT_OF_MEMORY, recipe, row

from vramcalc import estimate
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.errors import DataError
from vramcalc.profiling.row_figures import as_measurement, inconsistencies, job_of
from vramcalc.profiling.rows import ProfileRow, parse, read_profiles, shipped
from vramcalc.show.text.profiles import profile_text

TABLE = Path(__file__).resolve().parents[2] / "tables" / "measurements.csv"
FULL = {"method": "full", "seq_lens": [32, 64], "stack": "peft-loop"}
SEVERAL: list[dict[str, Any]] = [
    {},
    FULL,
    {"method": "qlora", "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]},
    {"alloc_conf": "max_split_size_mb:128", "find_smallest": True, "live_blocks": 5},
]


@pytest.mark.parametrize("settings", SEVERAL, ids=str)
@pytest.mark.parametrize("found", [MEASURED, OUT_OF_MEMORY], ids=["measured", "out of memory"])
def test_a_row_is_itself_after_it_was_written_and_read(found: dict[str, Any], settings: dict[str, Any]) -> None:
    made = row(found, **settings)
    line = made.to_json()
    assert "\n" not in line
    assert parse(line) == made
    assert parse(line).to_json() == line
    assert parse(line).job_id == made.recipe.job_id


def test_the_digest_is_that_of_the_whole_recipe() -> None:
    base = recipe()
    same = recipe(rank=16)
    others = [recipe(rank=8), recipe(seq_len=65), recipe(find_smallest=True), recipe("full"), recipe(live_blocks=1)]
    others += [recipe(layers=2), recipe(stack="trl-sft"), recipe(device="cpu")]
    assert same.job_id == base.job_id
    assert len({base.job_id, *(o.job_id for o in others)}) == 1 + len(others)


def test_the_digest_is_the_same_in_every_process() -> None:
    script = "from profile_rows import recipe; print(recipe(target_modules=['v_proj', 'q_proj', 'o_proj']).job_id)"
    here = recipe(target_modules=["q_proj", "o_proj", "v_proj"]).job_id
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == here


def test_nothing_in_a_row_tells_the_single_card_or_the_machine() -> None:
    line = row().to_json()
    assert "GPU-0" not in line
    assert json.loads(line)["machine"]["gpu"]["uuid"] is None
    assert os.uname().nodename not in line


# -- broken files ------------------------------------------------------------------------------------------------------


def changed(path: str, value: object) -> str:
    """A row with one field set; ``None`` takes it out."""
    plain = json.loads(row().to_json())
    *way, last = path.split(".")
    inner = plain
    for name in way:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(plain)


BROKEN = {
    "not JSON": ("{", "no JSON"),
    "a list": ("[1]", "schema = 'list': expected 'vramcalc-profile'"),
    "foreign": ('{"run": 1}', "schema = None: expected 'vramcalc-profile'"),
    "newer": (changed("version", 2), "version = 2: this vramcalc reads up to 1; update"),
    "version in words": (changed("version", "1"), "version = '1': expected 1"),
    "negative": (changed("memory.whole.allocated_bytes", -1), "memory.whole.allocated_bytes = '-1'"),
    "a fraction of a byte": (changed("memory.load.reserved_bytes", 1.5), "memory.load.reserved_bytes = '1.5'"),
    "text for a number": (changed("timing.step_s", "fast"), "timing.step_s = 'fast'"),
    "unknown field": (changed("memory.whole.max_bytes", 1), "memory.whole.max_bytes: no such field"),
    "missing": (changed("machine.python", None), "machine.python: expected a value"),
    "a recipe that is none": (changed("recipe.training.micro_batch_size", 0), "micro_batch_size = 0"),
    "an unknown optimizer": (changed("recipe.training.optim", "foo"), "optim = 'foo'"),
    "an outcome that is none": (changed("outcome", "fine"), "outcome = 'fine'"),
    "too few steps": (changed("timing.steps_s", [1.0]), "timing.steps_s"),
}


@pytest.mark.parametrize(("line", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_an_error_with_its_line_its_field_and_what_to_do(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{row().to_json()}\n{line}\n{row().to_json()}\n")
    with pytest.raises(DataError) as caught:
        read_profiles(file)
    text = str(caught.value)
    assert text.startswith(f"{file}, line 2: ")
    assert says in text
    assert any(remedy in text for remedy in ("restore", "update", "this is no profile"))


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; 'vramcalc campaign'"):
        read_profiles(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(row().to_json().encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match="line 2: not UTF-8 text"):
        read_profiles(tmp_path / "binary.jsonl")


def test_shipped_rows_can_be_read_and_hold_together() -> None:
    for found in shipped():
        assert inconsistencies(found) == []
        assert found.source == "profile"


# -- what a row says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SEVERAL, ids=str)
def test_an_estimate_takes_what_a_row_says_about_its_job(settings: dict[str, Any]) -> None:
    made = row(**settings)
    asked, _ = as_measurement(made)
    found = estimate(**asked)
    assert found.job == job_of(made)
    assert found.gpu is not None
    assert found.gpu.gpu_id == "h100-sxm"


BETWEEN_PHASES = {"allocated_end_of_train", "allocated_avg_step_end", "oom"}


def predicted() -> set[str]:
    """Metrics of which at least one published row is predicted."""
    rows = read_measurements(TABLE)
    of = {metric: [row for row in rows if row["metric"] == metric] for metric in {row["metric"] for row in rows}}
    return {metric for metric, mine in of.items() if any(not p.reason for p in predict(mine))}


def test_metrics_are_those_of_published_measurements_and_more() -> None:
    _, metrics = as_measurement(row())
    assert metrics["allocated_max"] == 10 * GIB
    assert metrics["reserved_max"] == 12 * GIB
    assert metrics["context"] == GIB
    assert metrics["process_used"] == metrics["reserved_max"] + metrics["context"]
    assert metrics["device_used"] == 14 * GIB
    assert metrics["smallest_reserved"] == 11 * GIB
    assert metrics["step_s"] == 0.5
    # What is alive between phases is not recorded, and a run that ended out of memory has no figure.
    assert {m for m in predicted() if not (m.startswith("phase:after") or m in BETWEEN_PHASES)} <= set(metrics)


def test_a_run_that_ended_out_of_memory_has_no_peak() -> None:
    _, metrics = as_measurement(row(OUT_OF_MEMORY))
    assert metrics == {}


def test_where_nvml_does_not_tell_the_process_the_context_is_what_the_device_took_more() -> None:
    found = copy.deepcopy(MEASURED)
    found["memory"]["end"]["process_bytes"] = None
    _, metrics = as_measurement(row(found))
    assert metrics["context"] == (14 - 1 - 12) * GIB
    del found["memory"]["before_cuda"]
    _, metrics = as_measurement(row(found))
    assert "context" not in metrics
    assert "process_used" not in metrics


def test_other_releases_than_the_recipe_models_are_named() -> None:
    plain = json.loads(row().to_json())
    plain["versions"] |= {"torch": "2.11.0+cu130", "transformers": "5.23.1", "peft": "0.2.1"}
    assert parse(json.dumps(plain)).unchecked_versions == ["torch 2.11.0+cu130", "peft 0.2.1"]


# -- laws of one run ---------------------------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, tuple[str, object, str]] = {
    "reserved": ("memory.forward.reserved_bytes", 7 * GIB, "forward: more allocated than reserved"),
    "phase": ("memory.backward.allocated_bytes", 11 * GIB, "backward: peak above that of the whole"),
    "capacity": ("machine.torch_total_bytes", 5 * GIB, "more reserved than the device has"),
    "context": ("memory.end.process_bytes", 12 * GIB, "a CUDA context of 0 bytes"),
    "device": ("memory.device_used_peak_bytes", 9 * GIB, "less in use on the device than allocated"),
    "smallest": ("smallest.suffices_bytes", 9 * GIB, "runs in less than it allocates"),
    "order": ("smallest.fails_bytes", 11 * GIB, "a limit that fails above one that suffices"),
    "outcome": ("outcome", "failed", "a failure goes with every outcome but 'measured'"),
}


def test_a_sound_row_has_no_contradiction() -> None:
    assert inconsistencies(row()) == []
    assert inconsistencies(row(OUT_OF_MEMORY)) == []


@pytest.mark.parametrize(("path", "value", "says"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_true_of_one_run_is_said(path: str, value: object, says: str) -> None:
    made = parse(changed(path, value))
    assert says in inconsistencies(made)
    assert f"contradicts itself: {says}" in profile_text(made)


def test_memory_that_is_missing_on_a_gpu_is_a_contradiction() -> None:
    assert inconsistencies(row({"outcome": "measured"})) == ["memory is measured on a GPU, and only there"]


def test_the_text_of_a_row_sets_predicted_beside_measured() -> None:
    text = profile_text(row())
    assert "allocated_max" in text
    assert "10.00 GiB" in text
    assert "smallest memory that suffices: 11.00 GiB for torch's allocator; 10.00 GiB does not do" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_text_of_a_failure_says_where_and_how_much_was_asked_for() -> None:
    assert "out of memory in forward, asked for 1.00 GiB" in profile_text(row(OUT_OF_MEMORY))


def test_rows_are_frozen() -> None:
    made: Any = row()
    with pytest.raises(ValueError, match="frozen"):
        made.outcome = "failed"
    assert isinstance(made, ProfileRow)
    assert made.key[1] == H100.gpu.name if H100.gpu else False
