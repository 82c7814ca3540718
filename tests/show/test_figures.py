"""Pictures show the numbers they are made of, in GiB and from zero, and leave matplotlib as they found it."""

from __future__ import annotations

import dataclasses
import datetime
import io
import math
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations, islice
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from small import METHODS, TINY

from vramcalc import Estimate, Gpu, VramcalcError, estimate, estimate_grid
from vramcalc.accuracy.memory.accuracy import Accuracy
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.errors import InvalidValue, UnknownName
from vramcalc.memory.ledger import GROUPS
from vramcalc.show import figures, palette
from vramcalc.show.figures.costs import front
from vramcalc.show.figures.stacks import labels_of
from vramcalc.show.words import CACHE, process_groups
from vramcalc.tables import directory
from vramcalc.units import GIB

TODAY = datetime.date(2026, 11, 22)
SMALL = Gpu(
    gpu_id="small",
    name="small",
    architecture="Ampere",
    compute_capability="8.0",
    total_bytes=GIB,
    total_basis="given",
)


@cache
def made(method: str = "lora", **settings: Any) -> Estimate:
    return estimate(TINY, method, **{"seq_len": 256, **settings})


@cache
def grid_of() -> Any:
    return estimate_grid(TINY, "lora", micro_batch_size=[[1], [2], [4]], seq_len=[512, 64, 128, 256])


@cache
def measured() -> Accuracy:
    """The first rows of the shipped file that are predicted, and one that is not."""
    rows = read_measurements(directory() / "measurements.csv")
    predicted = islice((p for p in predict(rows) if p.error is not None), 40)
    other = next(p for p in predict(rows) if p.error is None)
    return Accuracy([], [], Counter(), [*predicted, other])


CHOICES = [("slow", 10, 5), ("fast", 1, 20, 0.5, 2, 15, 30), ("beaten", 12, 25)]
PICTURES = {
    "timeline": lambda: made().plot(),
    "timeline, steps": lambda: made(gradient_accumulation_steps=3).plot(),
    "timeline, GPU": lambda: estimate(TINY, "full", gpu=SMALL).plot(),
    "ledgers": lambda: figures.ledgers([made(m) for m in METHODS]),
    "grid": lambda: grid_of().plot("t4"),
    "accuracy": lambda: measured().plot(),
    "pareto": lambda: figures.pareto(CHOICES, priced_on=TODAY),
}
IN_GIB = [name for name in PICTURES if name != "pareto"]


@pytest.mark.parametrize("name", IN_GIB)
def test_every_picture_of_memory_is_a_figure_labelled_in_gib(name: str) -> None:
    figure = PICTURES[name]()
    assert isinstance(figure, Figure)
    for on in figure.axes:
        assert "[GiB]" in on.get_xlabel() + on.get_ylabel()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_opaque_and_small_and_shows_itself(name: str) -> None:
    png = PICTURES[name]()._repr_png_()
    pixels = imread(io.BytesIO(png))
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all()
    assert (pixels[0, 0, :3] == 1).all()
    assert len(png) < 40_000
    assert 400 < pixels.shape[0] < 700 or name == "ledgers"
    assert 800 < pixels.shape[1] < 1100


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_does_not_depend_on_the_style_around_it_and_leaves_none(name: str) -> None:
    before = dict(mpl.rcParams)
    plain = PICTURES[name]()._repr_png_()
    assert dict(mpl.rcParams) == before
    with mpl.style.context("dark_background"):
        assert PICTURES[name]()._repr_png_() == plain


def test_nothing_stays_behind_in_pyplot() -> None:
    script = (
        "import sys, vramcalc; vramcalc.estimate('qwen2.5-0.5b').plot()._repr_png_(); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


@pytest.mark.parametrize(
    "draw", ["vramcalc.estimate('qwen2.5-0.5b')", "vramcalc.estimate_grid('qwen2.5-0.5b', seq_len=[8, 9])"]
)
def test_without_matplotlib_the_extra_is_named(draw: str) -> None:
    script = f"""
import sys
sys.modules["matplotlib"] = None
import vramcalc
try:
    {draw}.plot()
except vramcalc.VramcalcError as err:
    print(type(err).__name__, err)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "MissingExtra pictures are drawn with matplotlib, and matplotlib is not installed: pip install '.[notebook]'\n"
    )


# -- timeline ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_stack_of_a_timeline_is_as_high_as_the_peak(method: str) -> None:
    found = made(method)
    (on,) = found.plot().axes
    tops = [c.get_paths()[0].vertices[:, 1].max() * GIB for c in on.collections]
    assert max(tops) == pytest.approx(found.allocated_bytes)
    assert [to_hex(c.get_facecolor()[0]).upper() for c in on.collections] == [
        palette.GROUPS[g] for g in found.timeline.groups
    ]
    assert on.get_ylim()[0] == 0
    assert any(f"peak {found.allocated_bytes / GIB:.2f} GiB" in t.get_text() for t in on.texts)


def test_a_gpu_is_a_line_at_what_it_has_beside_the_context() -> None:
    found = estimate(TINY, "full", gpu=SMALL, micro_batch_size=8)
    (on,) = found.plot().axes
    line = next(n for n in on.lines if str(n.get_label()).startswith("small: "))
    assert line.get_ydata()[0] * GIB == pytest.approx(GIB - found.context.n_bytes)
    far = next(n for n in estimate(TINY, gpu="a100-sxm-80").plot().axes[0].lines if "a100" in str(n.get_label()))
    assert far.get_ydata()[0] < 0
    assert str(far.get_label()).startswith("(")


def test_a_picture_goes_on_axes_that_are_given() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert made().plot(left) is figure
    assert figures.ledgers([made()], ax=right) is figure
    assert left.collections
    assert right.patches


# -- ledgers -----------------------------------------------------------------------------------------------------------


def test_bars_sum_to_the_process_and_their_tensors_to_the_peak() -> None:
    found = [made(m) for m in METHODS]
    (on,) = figures.ledgers(found).axes
    for row, e in enumerate(found):
        pieces = {str(c.get_label()): c[row].get_width() * GIB for c in on.containers if c[row].get_width()}
        assert sum(pieces.values()) == pytest.approx(e.process_bytes)
        assert sum(n for g, n in pieces.items() if g not in (CACHE, "context")) == pytest.approx(e.allocated_bytes)
        assert pieces == pytest.approx({g: n for g, n in process_groups(e).items() if n})
    assert on.get_xlim()[0] == 0


def test_groups_have_one_colour_in_all_pictures() -> None:
    (bars,) = figures.ledgers([made(m) for m in METHODS]).axes
    for container in bars.containers:
        expected = {**palette.GROUPS, CACHE: palette.CACHED}[str(container.get_label())]
        assert to_hex(container[0].get_facecolor()).upper() == expected


def test_bars_are_named_by_what_differs() -> None:
    assert labels_of([made("full"), made("lora")]) == ["full fine-tuning", "LoRA r=16"]
    assert labels_of([made(), made(gradient_checkpointing="reentrant")]) == [
        "LoRA r=16\nno checkpointing",
        "LoRA r=16\ncheckpointing",
    ]
    assert labels_of([made(seq_len=64), made(seq_len=2048)]) == [
        "LoRA r=16\n1 x 64 tokens",
        "LoRA r=16\n1 x 2,048 tokens",
    ]


@pytest.mark.parametrize("arguments", [{"estimates": []}, {"estimates": [1, 2], "labels": ["one"]}])
def test_bars_without_estimates_or_names_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        figures.ledgers(**{**arguments, "estimates": [made() for _ in arguments["estimates"]]})


# -- grids -------------------------------------------------------------------------------------------------------------


def test_a_line_per_batch_holds_the_peaks_in_order_of_length() -> None:
    grid = grid_of()
    (on,) = grid.plot().axes
    assert [n.get_label() for n in on.lines] == ["1 sequence", "2 sequences", "4 sequences"]
    for row, line in enumerate(on.lines):
        order = np.argsort(grid.seq_len[row])
        assert list(line.get_xdata()) == sorted(grid.seq_len[row])
        assert line.get_ydata() * GIB == pytest.approx(grid.allocated_bytes[row][order])
    assert on.get_ylim()[0] == 0
    assert [len(n.get_xdata()) for n in grid.plot(along="micro_batch_size").axes[0].lines] == [3] * 4


def test_the_interval_is_drawn_where_there_is_one() -> None:
    grid = grid_of()
    assert not figures.grid(grid).axes[0].collections
    assert len(grid.plot().axes[0].collections) == 3
    low, high = grid.allocated_bytes * 0.9, grid.allocated_bytes * 1.2
    bands = figures.grid(grid, low_bytes=low, high_bytes=high).axes[0].collections
    assert len(bands) == 3
    for row, band in enumerate(bands):
        heights = band.get_paths()[0].vertices[:, 1] * GIB
        assert (heights.min(), heights.max()) == pytest.approx((low[row].min(), high[row].max()))


def test_the_gpus_line_is_within_the_picture() -> None:
    (on,) = estimate_grid("llama-3.1-8b", seq_len=[512, 8192]).plot("t4").axes
    line = on.lines[-1]
    assert str(line.get_label()).startswith("t4: ")
    assert line.get_ydata()[0] < on.get_ylim()[1]


@pytest.mark.parametrize(
    ("axes", "arguments", "error"),
    [
        ({"seq_len": [64]}, {}, InvalidValue),
        ({"seq_len": [[[64]], [[128]]], "micro_batch_size": [[[1], [2]]], "rank": [[[4, 8]]]}, {}, InvalidValue),
        ({"seq_len": [64, 128]}, {"along": "rank"}, InvalidValue),
        ({"seq_len": [[n] for n in range(8, 20)], "rank": list(range(8, 20))}, {}, InvalidValue),
        ({"seq_len": [64, 128]}, {"gpu": "h1000"}, UnknownName),
    ],
)
def test_what_is_no_picture_is_refused(
    axes: dict[str, Any], arguments: dict[str, Any], error: type[VramcalcError]
) -> None:
    with pytest.raises(error):
        estimate_grid(TINY, "lora", **axes).plot(**arguments)


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_every_predicted_row_is_a_point_on_both_sides() -> None:
    found = measured()
    rows = [p for p in found.predictions if p.error is not None]
    assert len(rows) < len(found.predictions)
    left, right = found.plot().axes
    points = np.concatenate([c.get_offsets() for c in left.collections])
    errors = np.concatenate([c.get_offsets() for c in right.collections])
    assert sorted(points[:, 0] * GIB) == pytest.approx(sorted(p.value_bytes for p in rows))
    assert sorted(points[:, 1] * GIB) == pytest.approx(sorted(p.predicted_bytes for p in rows))
    assert sorted(errors[:, 1] / 100) == pytest.approx(sorted(p.error for p in rows))


def test_rows_of_which_only_the_cap_is_known_are_hollow() -> None:
    found = measured()
    capped = [type(p)({**p.row, "seq_kind": "max_not_reached"}, p.predicted_bytes, "") for p in found.predictions[:40]]
    shapes = dataclasses.replace(found, groups=[], apart=[], predictions=capped).plot().axes[0].collections
    assert all(
        len(c.get_facecolor()) == 0 or c.get_facecolor()[0][3] == 0 for c in shapes if c.get_label()[-4:] == " max"
    )
    with pytest.raises(InvalidValue, match="at least one predicted row"):
        dataclasses.replace(found, groups=[], apart=[], predictions=[]).plot()


# -- cost against time -------------------------------------------------------------------------------------------------

numbers = st.integers(1, 9).map(float)


@given(st.lists(st.tuples(st.just("x"), numbers, numbers), min_size=1, max_size=12))
def test_the_front_is_what_no_choice_beats(rows: list[tuple[str, float, float]]) -> None:
    choices = [figures.Run(*row) for row in rows]
    best = front(choices)

    def beats(a: figures.Run, b: figures.Run) -> bool:
        return a.hours <= b.hours and a.usd <= b.usd and (a.hours, a.usd) != (b.hours, b.usd)

    assert all(not beats(a, b) for a in choices for b in best)
    assert all(
        any(beats(a, b) for a in best) for b in choices if (b.hours, b.usd) not in {(c.hours, c.usd) for c in best}
    )


def test_dollars_come_with_their_date() -> None:
    (on,) = PICTURES["pareto"]().axes
    assert "2026-11-22" in on.get_ylabel()
    assert {t.get_text() for t in on.texts} == {"slow", "fast", "beaten"}
    assert "hours" in on.get_xlabel()


@pytest.mark.parametrize(
    "row",
    [
        ("x", 0, 1),
        ("x", 1, -1),
        ("x", math.nan, 1),
        ("x", 1, math.inf),
        ("x", 2, 1, 3, 4),
        ("x", 1, 5, None, None, 1, 4),
    ],
)
def test_times_and_costs_are_positive_and_inside_their_intervals(row: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidValue, match=r"of x = .*: expected positive numbers"):
        figures.pareto([row], priced_on=TODAY)
    with pytest.raises(InvalidValue, match="at least one run"):
        figures.pareto([], priced_on=TODAY)


@pytest.mark.parametrize("row", [(), ("x", 1), ("x", 1, 1, 1, 1, 1, 1, 1)])
def test_a_row_has_a_label_a_time_and_a_cost(row: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidValue, match=r"run = .*: expected label, hours, usd, low_hours"):
        figures.pareto([row], priced_on="as given")


# -- colours -----------------------------------------------------------------------------------------------------------

SEEN = {
    "by most people": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "with protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "with deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ),
    "with tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.3039),
    ),
}
"""Linear RGB as it is seen: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009) 1291, severity 1."""


def lab(colour: str, seen: Any) -> Any:
    """CIE L*a*b* of a colour of sRGB, white at D65."""
    rgb = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-9))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(
    "colours", [[*palette.GROUPS.values(), palette.CACHED], palette.METHODS.values(), palette.VERDICTS.values()]
)
def test_colours_are_told_apart(colours: Any, seen: str) -> None:
    """A difference of 2.3 is just noticeable (Mahy et al. 1994); small areas need several times that."""
    for a, b in combinations(colours, 2):
        assert np.linalg.norm(lab(a, SEEN[seen]) - lab(b, SEEN[seen])) > 15


def test_every_group_has_a_colour() -> None:
    assert tuple(palette.GROUPS) == GROUPS
    assert set(palette.METHODS) == set(METHODS)
