"""Campaigns: what a file may say, what is run in which order, and what is left after being killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command import process, run
from configs import CONFIGS, write_config
from profile_rows import CPU, H100, MEASURED, OUT_OF_MEMORY, cpu_row

from vramcalc import tables
from vramcalc.errors import DataError, UnknownName
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import estimate_job
from vramcalc.profiling.campaign import Campaign, Planned, find, read_campaign
from vramcalc.profiling.in_a_process import Place, made_row
from vramcalc.profiling.rows import ProfileRow, read_profiles
from vramcalc.profiling.run_campaign import Progress, Rows, Summary
from vramcalc.profiling.run_campaign import run as run_campaign

HERE = Path(__file__).resolve().parents[1]
SHIPPED = sorted((tables.directory() / "campaigns").glob("*.yaml"))
TWELVE = """
name: twelve
defaults: {model: MODEL, seq_len: 16, expected_s: 10}
jobs:
  - {method: full}
  - {method: full, optim: sgd}
  - product: {rank: [1, 2, 4, 8, 16], seq_len: [16, 32]}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.json", CONFIGS["llama"])


@pytest.fixture
def twelve(tmp_path: Path, tiny: Path) -> Path:
    return written(tmp_path, TWELVE.replace("MODEL", str(tiny)))


def written(folder: Path, text: str) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_an_entry_is_a_job_or_the_product_of_its_lists(twelve: Path) -> None:
    found = read_campaign(twelve)
    assert found.name == "twelve"
    assert [job.recipe.training.seq_len for job in found.jobs] == [16, 16, *[16, 32] * 5]
    assert [getattr(job.recipe.method, "rank", 0) for job in found.jobs] == [0, 0, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
    assert {job.expected_s for job in found.jobs} == {10.0}
    assert {job.where for job in found.jobs} == {"job 1", "job 2", "job 3"}


def test_a_job_that_is_there_twice_is_run_once(tmp_path: Path, tiny: Path) -> None:
    path = written(tmp_path, f"jobs: [{{model: {tiny}}}, {{model: {tiny}, rank: 16}}, {{model: {tiny}, rank: 8}}]")
    found = read_campaign(path)
    assert len(found.jobs) == 2
    assert found.repeated == 1


def test_words_that_yaml_takes_for_booleans_stay_words(tmp_path: Path, tiny: Path) -> None:
    found = read_campaign(written(tmp_path, f"jobs: [{{model: {tiny}, keeps_outputs: no, autocast: null}}]"))
    assert found.jobs[0].recipe.stack.keeps_outputs == "no"
    assert found.jobs[0].recipe.stack.autocast is None


def test_layers_are_those_of_the_entry(tmp_path: Path) -> None:
    found = read_campaign(written(tmp_path, "jobs: [{model: llama-3.1-70b, layers: 2, device: cpu}]"))
    assert found.jobs[0].recipe.model.num_hidden_layers == 2
    assert found.jobs[0].recipe.device == "cpu"


BAD = {
    "no YAML": ("jobs: [", "is no YAML"),
    "a list": ("- model: x", "expected names with values"),
    "empty": ("", "expected names with values"),
    "no jobs": ("name: x", "jobs = None: expected a list of jobs"),
    "jobs that are none": ("jobs: 3", "jobs = 3: expected a list of jobs"),
    "unknown key": ("jbos: []", "no key of a campaign named 'jbos'; did you mean 'jobs'?"),
    "a name with a slash": ("name: ../x\njobs: [{model: MODEL}]", "name = '../x': expected letters"),
    "no model": ("jobs: [{method: lora}]", "job 1: model: expected a value"),
    "unknown model": ("jobs: [{model: llama-3.1-9b}]", "job 1: no model named 'llama-3.1-9b'; did you mean"),
    "unknown method": ("jobs: [{model: MODEL, method: lara}]", "job 1: no method named 'lara'; did you mean 'lora' or"),
    "unknown setting": ("jobs: [{model: MODEL, rnak: 8}]", "no setting of lora named 'rnak'; did you mean 'rank' or"),
    "unknown default": ("defaults: {seqlen: 8}\njobs: [{model: MODEL}]", "no setting of lora named 'seqlen'"),
    "a setting of another method": ("jobs: [{model: MODEL, method: full, rank: 8}]", "no setting of full named 'rank'"),
    "a value of the wrong type": ("jobs: [{model: MODEL, rank: eight}]", "rank = 'eight': expected a whole number"),
    "zero": ("jobs: [{model: MODEL, micro_batch_size: 0}]", "micro_batch_size = 0: expected at least 1"),
    "a device that is none": ("jobs: [{model: MODEL, device: tpu}]", "device = 'tpu'"),
    "text for a switch": ("jobs: [{model: MODEL, find_smallest: maybe}]", "find_smallest = 'maybe'"),
    "no time": ("jobs: [{model: MODEL, expected_s: 0}]", "expected_s = 0: expected seconds, more than 0"),
    "time in words": ("jobs: [{model: MODEL, expected_s: long}]", "expected_s = 'long': expected seconds"),
    "a product of no list": ("jobs: [{model: MODEL, product: {rank: 8}}]", "rank = 8: expected a list of values"),
    "an empty product": ("jobs: [{model: MODEL, product: {rank: []}}]", "rank = []: expected a list of values"),
    "a bad value in a product": ("jobs: [{model: MODEL, product: {rank: [8, -1]}}]", "rank = -1: expected at least 1"),
    "a name given twice": ("jobs: [{model: MODEL, rank: 8, rank: 16}]", "'rank' is given twice"),
    "settings that do not go together": (
        "jobs: [{model: MODEL, loss: fused_linear, target_modules: [lm_head]}]",
        "passes by an adapter on lm_head",
    ),
    "code": ("jobs: !!python/object/apply:os.system ['true']", "is no YAML"),
    "too many": (
        f"jobs: [{{model: MODEL, product: {{rank: {list(range(1, 201))}, seq_len: {list(range(1, 101))}}}}}]",
        "more than 10,000 jobs",
    ),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_error_with_the_place_what_was_expected_and_no_job_run(
    tmp_path: Path, tiny: Path, text: str, says: str
) -> None:
    path, output = written(tmp_path, text.replace("MODEL", str(tiny))), tmp_path / "rows.jsonl"
    with pytest.raises(DataError) as caught:
        read_campaign(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    ran = run("campaign", path, "--device", "cpu", "--output", output)
    assert ran.status == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert not output.exists()


def test_a_campaign_goes_by_its_path_or_by_its_name() -> None:
    assert find("hopper") == tables.directory() / "campaigns" / "hopper.yaml"
    assert find(str(SHIPPED[0])) == SHIPPED[0]
    with pytest.raises(UnknownName, match="did you mean 'hopper'"):
        find("hoper")


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--minutes", "0"), "--minutes"), (("--minutes", "soon"), "--minutes"), (("--device", "tpu"), "cuda or cpu")],
)
def test_bad_options_are_refused(twelve: Path, options: tuple[str, ...], says: str) -> None:
    ran = run("campaign", twelve, *options)
    assert ran.status == 2
    assert says in ran.err


# -- shipped campaigns -------------------------------------------------------------------------------------------------


@cache
def shipped_jobs(path: Path) -> list[tuple[Planned, int]]:
    """Jobs with what they are predicted to need on an H100. [B]"""
    gpu, found = catalog.gpu("h100-sxm"), []
    for job in read_campaign(path, where=Place("cuda", gpu)).jobs:
        r = job.recipe
        e = estimate_job(Job(r.model, r.method, r.training, r.stack, gpu.capability), gpu)
        found.append((job, e.process_bytes))
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_campaign_can_be_run_and_predicted(path: Path) -> None:
    assert read_campaign(path).repeated == 0
    jobs = shipped_jobs(path)
    fits = [need <= catalog.gpu("h100-sxm").total_bytes for _, need in jobs]
    # Those that do not fit come last.
    assert fits == sorted(fits, reverse=True)
    assert not all(fits)


def test_the_campaign_for_hopper_covers_what_it_is_for() -> None:
    jobs = [job for job, _ in shipped_jobs(find("hopper"))]
    recipes = [job.recipe for job in jobs]
    assert sum(r.find_smallest for r in recipes) >= 30
    assert {r.method.kind for r in recipes} == {"full", "lora", "qlora"}
    assert {getattr(r.method, "rank", None) for r in recipes} >= {8, 64, 256}
    assert {r.training.gradient_checkpointing for r in recipes} == {"none", "reentrant", "non_reentrant"}
    assert {r.stack.sdpa_kernel for r in recipes} == {"auto", "flash", "efficient", "math"}
    assert {r.stack.attn_implementation for r in recipes} == {"sdpa", "eager"}
    assert {"adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit"} <= {r.training.optim for r in recipes}
    assert {r.stack.loss for r in recipes} >= {"full", "fused_linear"}
    assert {128, 32768} <= {r.training.seq_len for r in recipes}
    assert {1, 32} <= {r.training.micro_batch_size for r in recipes}
    assert max(r.model.params_total for r in recipes if r.method.kind == "qlora") > 70e9


def test_any_stretch_of_the_campaign_for_hopper_fills_ten_minutes_to_the_last_job() -> None:
    times = [job.expected_s for job in read_campaign(find("hopper")).jobs]
    assert max(times) <= 180
    assert sum(times) > 3600
    assert all(a + b < 600 for a, b in pairwise(times))


# -- running -----------------------------------------------------------------------------------------------------------


def measured(jobs: Iterable[Planned], _where: Place) -> Iterator[ProfileRow]:
    for job in jobs:
        yield cpu_row(job.recipe)


def test_rows_are_there_one_by_one_in_the_order_of_the_file(twelve: Path, tmp_path: Path) -> None:
    campaign, output = read_campaign(twelve, device="cpu"), tmp_path / "rows.jsonl"
    seen: list[int] = []

    def watching(jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
        for made in measured(jobs, where):
            seen.append(len(read_profiles(output)) if output.exists() else 0)
            yield made

    run_campaign(campaign, Rows(output), CPU, measure=watching)
    assert seen == list(range(12))
    assert [r.job_id for r in read_profiles(output)] == [job.recipe.job_id for job in campaign.jobs]


def test_what_is_done_is_not_done_again_and_out_of_memory_is_done(twelve: Path, tmp_path: Path) -> None:
    campaign, output = read_campaign(twelve, device="cpu"), tmp_path / "rows.jsonl"
    failure = {"kind": "RuntimeError", "message": "no", "phase": "load", "asked_bytes": None}
    ends: list[dict[str, Any]] = [OUT_OF_MEMORY, {"outcome": "failed", "failure": failure}, {"outcome": "measured"}]

    def mixed(jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
        for n, job in enumerate(jobs):
            yield made_row(job.recipe, where, ends[n % 3])

    first = run_campaign(campaign, Rows(output), CPU, measure=mixed)
    assert first.outcomes == {"out_of_memory": 4, "failed": 4, "measured": 4}
    again = run_campaign(campaign, Rows(output), CPU, measure=measured)
    assert (sum(again.outcomes.values()), again.resumed) == (0, 12)
    retried = run_campaign(campaign, Rows(output, retry_failed=True), CPU, measure=measured)
    assert (retried.outcomes, retried.resumed) == ({"measured": 4}, 8)


def test_another_gpu_is_another_measurement(twelve: Path, tmp_path: Path) -> None:
    campaign, output = read_campaign(twelve), tmp_path / "rows.jsonl"
    h200 = Place("cuda", catalog.gpu("h200"))

    def on(jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
        for job in jobs:
            yield made_row(job.recipe, where, MEASURED)

    assert run_campaign(campaign, Rows(output), H100, measure=on).outcomes == {"measured": 12}
    assert run_campaign(campaign, Rows(output), h200, measure=on).outcomes == {"measured": 12}
    assert run_campaign(campaign, Rows(output), H100, measure=on).outcomes == {}


class Clock:
    """Seconds that pass when a job is measured."""

    def __init__(self, each_s: float) -> None:
        self.now_s, self.each_s = 0.0, each_s

    def __call__(self) -> float:
        return self.now_s

    def measured(self, jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
        for made in measured(jobs, where):
            self.now_s += self.each_s
            yield made


@pytest.mark.parametrize(("each_s", "minutes"), [(10, 1.0), (10, 0.6), (25, 1.0), (2, 0.5), (100, 1.0)])
def test_no_job_is_started_that_would_end_too_late(twelve: Path, tmp_path: Path, each_s: float, minutes: float) -> None:
    campaign, clock, output = read_campaign(twelve, device="cpu"), Clock(each_s), tmp_path / "rows.jsonl"
    found = run_campaign(campaign, Rows(output), CPU, minutes=minutes, measure=clock.measured, now=clock)
    n = sum(found.outcomes.values())
    assert n >= 1
    assert n + found.left == 12
    # Only the first job can come as a surprise; what it took is expected of the next.
    assert clock.now_s <= max(60 * minutes + each_s, each_s)
    assert (n - 1) * each_s < 60 * minutes
    assert len(read_profiles(output)) == n


def test_the_time_left_is_told_and_falls_to_nothing(twelve: Path, tmp_path: Path) -> None:
    campaign, clock, told = read_campaign(twelve, device="cpu"), Clock(20), list[Progress]()
    rows = Rows(tmp_path / "rows.jsonl")
    run_campaign(campaign, rows, CPU, measure=clock.measured, now=clock, told=told.append)
    assert [p.done for p in told] == list(range(13))
    assert {p.total for p in told} == {12}
    assert told[0].left_s == 120
    # Jobs take twice what the file says.
    assert told[6].left_s > 60
    assert told[-1].left_s == 0


# -- killed, and side by side ------------------------------------------------------------------------------------------


def start(twelve: Path, output: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    script = [sys.executable, str(HERE / "campaign_process.py"), str(twelve), str(output)]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=environment)


def assert_each_once(campaign: Campaign, output: Path) -> None:
    counted = Counter(r.job_id for r in read_profiles(output))
    assert counted == {job.recipe.job_id: 1 for job in campaign.jobs}


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_a_campaign_ends_with_every_job_once(twelve: Path, tmp_path: Path, seed: int) -> None:
    campaign, output, chance = read_campaign(twelve, device="cpu"), tmp_path / "rows.jsonl", random.Random(seed)  # noqa: S311 - any moment will do
    kept: list[str] = []
    for _ in range(2):
        process_ = start(twelve, output)
        target = (output.stat().st_size if output.exists() else 0) + chance.randint(1, 9000)
        while process_.poll() is None and (not output.exists() or output.stat().st_size < target):
            pass
        process_.kill()
        process_.communicate()
        now = [r.to_json() for r in read_profiles(output)]
        # Nothing that was there is gone or changed.
        assert now[: len(kept)] == kept
        assert len(now) > len(kept) or len(now) == 12
        kept = now
    last = start(twelve, output)
    out, _ = last.communicate()
    assert last.returncode == 0
    assert list(map(int, out.split())) == [12 - len(kept), len(kept)]
    assert_each_once(campaign, output)


def test_a_row_torn_by_a_crash_is_told_and_measured_again(twelve: Path, tmp_path: Path) -> None:
    campaign, output = read_campaign(twelve, device="cpu"), tmp_path / "rows.jsonl"
    run_campaign(campaign, Rows(output), CPU, measure=measured)
    whole = output.read_bytes()
    output.write_bytes(whole[:-40])
    found = run_campaign(campaign, Rows(output), CPU, measure=measured)
    assert found.outcomes == {"measured": 1}
    assert "cut off" in found.notes[0]
    assert_each_once(campaign, output)


def test_two_campaigns_on_one_file_share_the_work_and_never_mix_rows(twelve: Path, tmp_path: Path) -> None:
    campaign, output = read_campaign(twelve, device="cpu"), tmp_path / "rows.jsonl"
    both = [start(twelve, output) for _ in range(2)]
    ended = [p.communicate()[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum(int(done) for done, _ in ended) == 12
    assert_each_once(campaign, output)


def test_a_file_of_something_else_is_left_alone(twelve: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes.txt"
    output.write_text("my notes\n")
    ran = run("campaign", twelve, "--device", "cpu", "--output", output)
    assert ran.status == 2
    assert "line 1: no JSON" in ran.err
    assert output.read_text() == "my notes\n"


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_the_jobs_and_measures_nothing(twelve: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    ran = run("campaign", twelve, "--dry-run", "--output", output)
    assert ran.status == 0
    assert "twelve: 12 jobs, 2 minutes" in ran.out
    assert not output.exists()
    jobs = run("campaign", twelve, "--dry-run", "--json").json
    assert len({job["job_id"] for job in jobs}) == 12


def test_without_a_gpu_the_command_says_what_to_do(twelve: Path) -> None:
    ran = process("campaign", twelve, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert ran.status == 2
    assert "--device cpu measures speed alone" in ran.err


def test_a_summary_is_plain_values() -> None:
    assert json.dumps(vars(Summary()))
