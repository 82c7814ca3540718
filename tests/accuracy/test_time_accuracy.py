"""Predicted durations against ``tables/throughput.csv``, by fits that have not seen what they predict."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run

from vramcalc import tables
from vramcalc.accuracy.time.accuracy import TimeAccuracy, TimeGroup, time_accuracy
from vramcalc.accuracy.time.generate import made
from vramcalc.accuracy.time.intervals import covered, held_out, widening
from vramcalc.accuracy.time.pairs import pairs
from vramcalc.accuracy.time.regression import Sample, fit_factors, samples
from vramcalc.accuracy.time.throughput import read_throughput
from vramcalc.errors import DataError
from vramcalc.memory.calibration.conformal import quantile
from vramcalc.show.text.time_accuracy import time_accuracy_text
from vramcalc.timing.fitted_factors import agree, timing_table
from vramcalc.timing.roofline import CORNER, KINDS, NOISE

PATH = tables.directory() / "throughput.csv"


@pytest.fixture(scope="module")
def found() -> TimeAccuracy:
    return time_accuracy(PATH)


@pytest.fixture(scope="module")
def rows() -> list[Sample]:
    return samples(read_throughput(PATH))


def whole(found: TimeAccuracy, left_out: str) -> TimeGroup:
    return next(g for g in found.groups if g.gpu == "all" and g.left_out == left_out)


# -- what is promised --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["model", "source"])
def test_half_of_the_held_out_rows_are_within_fifteen_percent(found: TimeAccuracy, left_out: str) -> None:
    assert whole(found, left_out).median <= 0.15


@pytest.mark.parametrize("left_out", ["model", "source"])
def test_nine_in_ten_intervals_hold_the_measured_duration(found: TimeAccuracy, left_out: str) -> None:
    """Within three points, where each interval is made of the errors of other models, or other sources."""
    assert whole(found, left_out).coverage == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("left_out", "median"), [("model", 0.06), ("source", 0.08)])
def test_ratios_of_methods_are_right_where_neither_was_seen(found: TimeAccuracy, left_out: str, median: float) -> None:
    every = next(g for g in found.pairs if (g.left_out, g.methods) == (left_out, "all"))
    assert every.median <= median
    assert every.ordered >= 0.95
    assert every.coverage == pytest.approx(0.9, abs=0.03)
    full = next(g for g in found.pairs if (g.left_out, g.methods) == (left_out, "full / lora"))
    assert full.median <= 0.05
    assert full.count == 10


def test_kinds_of_pairs_sum_to_all_of_them(found: TimeAccuracy) -> None:
    for left_out in ("model", "source"):
        counts = {g.methods: g.count for g in found.pairs if g.left_out == left_out}
        assert counts.pop("all") == sum(counts.values())


def test_a_source_that_is_slow_throughout_has_the_same_ratios(rows: list[Sample]) -> None:
    """What is wrong with all rows of a source cancels: measured ratios stay, and what is learned of methods."""
    from dataclasses import replace

    slow = [
        replace(s, step=replace(s.step, step_s=3 * s.step.step_s)) if s.step.source == "modelscope/ms-swift" else s
        for s in rows
    ]
    before, after = (pairs(held_out(given, "source")) for given in (rows, slow))
    assert [p.measured for p in after] == pytest.approx([p.measured for p in before])
    theirs = [i for i, p in enumerate(before) if p.source != "modelscope/ms-swift"]
    assert [after[i].predicted for i in theirs] == pytest.approx([before[i].predicted for i in theirs], rel=0.02)


def test_every_row_is_counted_once(found: TimeAccuracy) -> None:
    predicted = whole(found, "model").count
    assert predicted + found.apart + sum(found.unsupported.values()) == len(found.rows) == 1349
    assert sum(g.count for g in found.groups if g.left_out == "source") == 2 * predicted


def test_the_groups_average_to_the_whole(found: TimeAccuracy) -> None:
    groups = [g for g in found.groups if g.left_out == "model" and g.gpu != "all"]
    assert sum(g.mape * g.count for g in groups) / sum(g.count for g in groups) == pytest.approx(
        whole(found, "model").mape
    )


def test_the_worst_row_is_the_worst(found: TimeAccuracy) -> None:
    ends = {r.row["case_id"]: (r.predicted["model"][0] / r.step_s - 1) for r in found.rows if r.step_s and r.predicted}
    worst = whole(found, "model")
    assert max(ends, key=lambda case: abs(ends[case])) == worst.worst_case
    assert ends[worst.worst_case] == pytest.approx(worst.worst)


# -- how it is made ----------------------------------------------------------------------------------------------------


def test_a_held_out_prediction_has_not_seen_its_row(rows: list[Sample]) -> None:
    """The same prediction comes out when the measured durations of what is left out are other ones."""
    from dataclasses import replace

    fold = "Qwen/Qwen-7B-Chat"
    doubled = [replace(s, step=replace(s.step, step_s=2 * s.step.step_s)) if s.step.model == fold else s for s in rows]
    before, after = ([e.prediction.s for e in held_out(given, "model") if e.fold == fold] for given in (rows, doubled))
    assert after == pytest.approx(before, rel=1e-4)
    assert len(before) == 33


def test_the_slopes_are_those_of_the_model(rows: list[Sample]) -> None:
    """Against finite differences, at the fit."""
    from vramcalc.accuracy.time.regression import _Problem

    problem = _Problem(rows)
    at = problem.solve(None)
    log_t, slope = problem.predict(at)
    for i in range(slope.shape[1]):
        moved = at.copy()
        moved[i] += 1e-6
        assert (problem.predict(moved)[0] - log_t) / 1e-6 == pytest.approx(slope[:, i], abs=1e-4)


def test_the_fit_is_where_nothing_pulls(rows: list[Sample]) -> None:
    from vramcalc.accuracy.time.regression import _Problem

    problem = _Problem(rows)
    moves, covariance = problem.moves(problem.solve(None))
    assert np.abs(moves).max() < 1e-4
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_eliminating_the_cells_solves_the_whole_system(rows: list[Sample]) -> None:
    from vramcalc.accuracy.time.regression import _Problem

    problem = _Problem(rows)
    second, shared, own, gradient = problem.curvature(problem.prior)
    whole_system = np.block([[second, shared.T], [shared, np.diag(own)]])
    moves, covariance = problem.moves(problem.prior)
    assert moves == pytest.approx(np.linalg.solve(whole_system, gradient), rel=1e-6, abs=1e-9)
    n = len(second)
    assert covariance == pytest.approx(np.linalg.inv(whole_system)[:n, :n], rel=1e-5, abs=1e-9)


def test_a_fit_without_pull_stays_where_it_was_expected(rows: list[Sample]) -> None:
    """One row cannot move what it has no part in."""
    c, _ = fit_factors(rows[:1])
    assert c.factors["GPTQ"] == pytest.approx(KINDS["GPTQ"].prior)
    assert c.factors["experts"] == pytest.approx(KINDS["experts"].prior)


def test_a_fit_finds_the_factors_that_made_its_rows(rows: list[Sample]) -> None:
    """Durations made with known factors, no noise: a fit to them predicts them."""
    from dataclasses import replace

    rng = np.random.default_rng(7)
    truth = {name: kind.prior * math.exp(0.3 * rng.standard_normal()) for name, kind in KINDS.items()}

    def duration(s: Sample) -> float:
        parts = dict(zip(KINDS, s.least, strict=True))
        host = sum(truth[n] * v for n, v in parts.items() if KINDS[n].term == "host")
        once = truth["steps"] * parts["steps"]
        device = sum(truth[n] * v for n, v in parts.items() if KINDS[n].term not in ("host", "per step"))
        return float((device**CORNER + host**CORNER) ** (1 / CORNER) + once)

    exact = [replace(s, step=replace(s.step, step_s=duration(s))) for s in rows]
    errors = [abs(e.log_error) for e in held_out(exact, "model")]
    assert sorted(errors)[len(errors) // 2] < NOISE / 4


def test_a_quantile_holds_its_share() -> None:
    assert quantile([(float(i), 1.0) for i in range(100)], 0.0) == 89
    assert quantile([(float(i), 1.0) for i in range(100)], 1.0) == 90
    assert quantile([(1.0, 1.0)], 1.0) == 1.0


def test_intervals_of_a_fold_are_made_of_the_others(rows: list[Sample]) -> None:
    errors = held_out(rows, "source")
    fold = errors[0].fold
    expected = widening(e for e in errors if e.fold != fold) * errors[0].sigma
    assert covered(errors)[0][1] == pytest.approx(expected)


def test_the_shipped_fit_is_fresh(rows: list[Sample]) -> None:
    assert agree(made(rows), timing_table())


def test_a_changed_row_makes_the_shipped_fit_stale(rows: list[Sample]) -> None:
    assert not agree(made(rows[10:]), timing_table())


# -- files and the command ---------------------------------------------------------------------------------------------


def write(path: Path, *given: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(given[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(given)
    return path


def test_rows_of_ones_own_are_predicted_beside_the_shipped_ones(tmp_path: Path) -> None:
    row = dict(next(r for r in read_throughput(PATH) if r["case_id"] == "fms-base-20250207-mistral-7b-none-lora-g1-b4"))
    own = {**row, "case_id": "mine", "source": "me/mine@1:log.txt", "value": "3200"}
    found = time_accuracy(write(tmp_path / "own.csv", own, {**own, "case_id": "other", "n_gpus": "8"}))
    (mine, other) = found.rows
    assert set(mine.predicted) == {"model", "source"}
    low, high = mine.predicted["source"][1:]
    assert low < (mine.step_s or 0) < high
    assert (other.predicted, other.reason) == ({}, "several GPUs")
    assert whole(found, "source").count == 1


def test_a_broken_file_is_a_data_error(tmp_path: Path) -> None:
    row = dict(read_throughput(PATH)[0])
    with pytest.raises(DataError, match="line 2: value"):
        time_accuracy(write(tmp_path / "bad.csv", {**row, "value": "nan"}))


def test_the_command_prints_the_groups(found: TimeAccuracy) -> None:
    done = run("accuracy", "--time", str(PATH))
    assert done.status == 0
    assert done.out.rstrip() == time_accuracy_text(found).rstrip()
    assert "299 of 1,349 rows predicted" in done.out
    assert "several GPUs" in done.out


def test_the_command_gives_json(found: TimeAccuracy) -> None:
    done = run("accuracy", "--time", str(PATH), "--json", "--rows")
    data: dict[str, Any] = done.json
    assert set(data) == {"groups", "pairs", "apart", "unsupported", "rows"}
    assert len(data["rows"]) == len(found.rows)
    assert data["groups"] == json.loads(json.dumps(found.to_dict()["groups"]))


def test_the_command_refuses_another_schema() -> None:
    done = run("accuracy", "--time", str(tables.directory() / "measurements.csv"))
    assert done.status == 2
    assert "lacks the columns" in done.err


def test_rows_are_listed_on_request(found: TimeAccuracy) -> None:
    text = time_accuracy_text(found, rows=True)
    assert all(r.row["case_id"] in text for r in found.rows)
