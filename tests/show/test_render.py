"""Printouts and HTML say what the numbers are: parts sum to their whole, the recipe is told, names are escaped."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from command import run
from hypothesis import example, given
from hypothesis import strategies as st

from vramcalc import Estimate, Gpu, ModelSpec, Verdict, estimate, estimate_grid, fit, max_micro_batch_size, verdict
from vramcalc.accuracy.memory.accuracy import Accuracy, Group
from vramcalc.errors import InvalidValue, VramcalcError
from vramcalc.inputs.presets import PRESETS
from vramcalc.inputs.stack import QLoRA, Stack, TrainingSpec
from vramcalc.memory.ledger import GROUPS
from vramcalc.show import palette
from vramcalc.show.html import COLOURS, estimate_html
from vramcalc.show.plaintext import table
from vramcalc.show.text.estimates import estimate_text, fit_text
from vramcalc.show.words import method_line, process_groups, recipe_lines, shared_recipe_lines
from vramcalc.units import GIB, KIB, MIB, gib, human_bytes, parse_bytes, percent, round_up

MODEL = ModelSpec(
    name="<b>small</b> & \"quoted\" 'model'",
    model_type="qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=5,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=151936,
    max_position_embeddings=32768,
)
DEVICE = Gpu(
    gpu_id="<gpu&1>",
    name="any",
    architecture="Ampere",
    compute_capability="8.0",
    total_bytes=24 * GIB,
    total_basis="given",
)
METHODS = ("full", "lora", "qlora")
methods = pytest.mark.parametrize("method", METHODS)
stacks = pytest.mark.parametrize("stack", PRESETS)


@cache
def made(method: str = "lora", gpu: Gpu | None = None, **settings: Any) -> Estimate:
    return estimate(MODEL, method, gpu=gpu, **settings)


def rounded(text: str) -> int:
    """Bytes of what is printed with two decimals."""
    return round(float(text.removesuffix(" GiB")) * GIB)


NEAR = GIB // 100
"""The last digit of what is printed."""


# -- text --------------------------------------------------------------------------------------------------------------


def part(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a title."""
    lines = text.split(title, 1)[1].split("\n\n")[0].splitlines()[1:]
    return [re.split(r"  +", line.strip()) for line in lines]


@methods
@stacks
def test_printed_groups_sum_to_the_peak_and_to_a_hundred_percent(method: str, stack: str) -> None:
    found = made(method, stack=stack)
    rows = part(str(found), "Memory at the peak")
    assert [row[0] for row in rows] == [group for group in GROUPS if group in found.groups]
    whole = found.allocated_bytes + found.context.n_bytes
    assert abs(sum(rounded(row[1]) for row in rows) - whole) <= NEAR * len(rows)
    assert abs(sum(float(row[2].removesuffix(" %")) for row in rows) - 100) < 0.1 * len(rows)
    assert all(set(row[3]) == {"#"} for row in rows)


@methods
def test_the_three_numbers_are_printed_with_what_they_are(method: str) -> None:
    found = made(method)
    text = str(found)
    for name, n_bytes in (
        ("allocated", found.allocated_bytes),
        ("reserved", found.reserved_bytes),
        ("process", found.process_bytes),
    ):
        assert re.search(rf"\n  {name} +{gib(n_bytes)}  \w+", text)


@methods
@stacks
def test_every_instant_is_printed_and_the_highest_two_are_marked(method: str, stack: str) -> None:
    found = made(method, stack=stack)
    rows = part(str(found), "Instants, in the order of the step")
    assert [(row[0], row[1]) for row in rows] == [(i.name, gib(i.n_bytes)) for i in found.instants]
    marked = {row[2]: row[0] for row in rows if len(row) > 2}
    assert marked == {"<- peak": found.peak.name, "<- runner-up": found.runner_up.name}


@pytest.mark.parametrize("largest", [1, 5, 12, 10_000])
def test_the_largest_rows_and_the_rest_are_all_rows(largest: int) -> None:
    found = made()
    lines = estimate_text(found, largest=largest).split("Largest rows at the peak\n")[1].split("\n\n")[0].splitlines()
    shown = [line for line in lines[1:-1] if re.match(r" +[\d,.]+ [KMG]?i?B ", line)]
    assert len(shown) == min(largest, len(found.rows))
    assert lines[-1].endswith(f" {len(found.rows) - len(shown)} more rows")


def test_optimizer_states_in_managed_memory_are_named() -> None:
    found = made("full", optim="paged_adamw_8bit")
    assert re.search(rf"\n  paged +{gib(found.paged_bytes)} +optimizer state in managed memory", str(found))
    assert "\n  paged" not in str(made("full"))


@pytest.mark.parametrize(("stack", "method"), [*zip(PRESETS, ("full", "lora", "qlora", "lora"), strict=True)])
def test_no_printout_is_wider_than_a_hundred_columns(stack: str, method: str) -> None:
    found = made(method, DEVICE, stack=stack, micro_batch_size=8, seq_len=8192)
    verdicts = [verdict(found), verdict(found, "a100-sxm-80"), verdict(found, "rtx-4070-ti-super")]
    for text in (str(found), str(verdicts[0]), fit_text(verdicts)):
        assert max(map(len, text.splitlines())) <= 100


SETTINGS: dict[str, tuple[Any, ...]] = {
    "micro_batch_size": (2,),
    "seq_len": (1024,),
    "seq_lens": ([512, 100],),
    "gradient_accumulation_steps": (3,),
    "gradient_checkpointing": ("none", "reentrant", "non_reentrant"),
    "optim": ("sgd", "adamw_torch", "adamw_bnb_8bit"),
    "max_grad_norm": (0.0, 1.0),
    "padded": (True, False),
    "dtype": ("float32", "float16"),
    "autocast": ("bfloat16", "float16", None),
    "adapter_dtype": ("weights", "float32", "bfloat16"),
    "prepare_model_for_kbit_training": (True, False),
    "casts_embeddings_to_bf16": (False,),
    "attn_implementation": ("eager",),
    "sdpa_kernel": ("math", "efficient"),
    "repeats_kv": (True, False),
    "loss": ("full", "cross_entropy", "shifted_cross_entropy", "chunked", "fused_linear", "fused_cross_entropy"),
    "fused_kernels": ("none",),
    "use_cache": (True, False),
    "passes_attention_mask": (True, False),
    "keeps_outputs": ("next_forward", "backward", "no"),
    "outputs_to_float32": (True, False),
    "zero_grad": ("start", "end"),
    "zero_grad_set_to_none": (True, False),
    "bnb_embeddings_32bit": (True, False),
    "decay_groups": (True, False),
    "expandable_segments": (True, False),
    "alloc_conf": ("max_split_size_mb:64", None),
    "empty_cache_steps": (2, None),
    "rank": (8,),
    "lora_dropout": (0.1,),
    "target_modules": (["q_proj"],),
    "modules_to_save": (["lm_head"],),
    "bnb_4bit_quant_type": ("fp4",),
    "bnb_4bit_use_double_quant": (False,),
    "bnb_4bit_compute_dtype": ("float32",),
}
NO_BYTES = {"kind", "name", "lora_alpha", "torch", "cuda", "transformers", "peft", "bitsandbytes"}
RESERVED_ONLY = {"alloc_conf", "expandable_segments", "empty_cache_steps"}


def test_every_setting_is_tried() -> None:
    known = {name for spec in (TrainingSpec, Stack, QLoRA) for name in spec.model_fields}
    assert known == {*SETTINGS, *NO_BYTES}


@methods
@stacks
@pytest.mark.parametrize(
    "job", [{"optim": "adamw_bnb_8bit"}, {"keeps_outputs": "next_forward", "use_cache": True}], ids=str
)
def test_nothing_that_changes_memory_goes_unsaid(method: str, stack: str, job: dict[str, Any]) -> None:
    usual = {"stack": stack, "seq_len": 64, **job}
    base = estimate(MODEL, method, **usual)
    for name, values in SETTINGS.items():
        for value in values:
            try:
                other = estimate(MODEL, method, **{**usual, name: value})
            except VramcalcError:
                continue
            more = name in RESERVED_ONLY and getattr(base.job.stack, name) != value
            if more or (other.instants, other.trainable_params) != (base.instants, base.trainable_params):
                told = [(method_line(e.job), *recipe_lines(e.job)) for e in (base, other)]
                assert told[0] != told[1], (name, value)


@stacks
def test_the_recipe_names_its_preset_and_the_releases(stack: str) -> None:
    lines = recipe_lines(made(stack=stack).job)
    assert lines[0].startswith(f"{stack}: ")
    assert lines[-1] == "torch 2.13, transformers 5.23, peft 0.21, bitsandbytes 0.50"


def test_a_shared_recipe_says_which_kernel_runs_where() -> None:
    jobs = [(v.estimate.job, v.gpu.gpu_id) for v in fit(MODEL, gpus=["t4", "l4"], seq_len=64)]
    assert "SDPA attention: math on t4; flash on l4" in shared_recipe_lines(jobs)
    assert "SDPA flash attention" in shared_recipe_lines(jobs[1::2])
    raw = fit(MODEL, gpus=["l4"], seq_len=64, stack="pure-bf16-loop", prepare_model_for_kbit_training=True)
    lines = shared_recipe_lines([(v.estimate.job, v.gpu.gpu_id) for v in raw])
    assert "SDPA attention: flash on l4 (full), l4 (lora); math on l4 (qlora)" in lines


def test_fit_prints_a_row_per_method_and_gpu_and_counts_those_that_are_alike() -> None:
    verdicts = fit(MODEL, gpus=[DEVICE, "t4", DEVICE], seq_len=64)
    rows = re.findall(r"\n  (full|lora|qlora) +(\S.*?)  +(\S+ GiB)  ", fit_text(verdicts))
    assert [(method, gpu) for method, gpu, _ in rows] == [
        (method, gpu) for method in METHODS for gpu in ("2 x <gpu&1>", "t4")
    ]
    assert [needed for *_, needed in rows] == [gib(v.needed_bytes) for n, v in enumerate(verdicts) if n % 3 < 2]


def test_fit_hints_at_the_least_that_would_help() -> None:
    small = DEVICE.replace(total_bytes=3 * GIB)
    text = fit_text(fit(MODEL, gpus=[small], micro_batch_size=4))
    hints = re.findall(r"^  (\w+) +<gpu&1>  .*  (fits|tight)$", text.split("The least that would make it fit")[1], re.M)
    assert [method for method, _ in hints] == list(METHODS)
    none = fit_text(fit(MODEL, gpus=[DEVICE.replace(total_bytes=GIB)], methods=["qlora"], seq_len=64))
    assert "a larger GPU or a smaller model" in none
    assert "The least" not in fit_text(fit(MODEL, gpus=[DEVICE], seq_len=64))


def test_warnings_are_printed_once() -> None:
    text = fit_text(fit(MODEL, gpus=["t4", "t4", "v100-sxm2-16"], seq_len=64))
    assert [line.split()[1] for line in text.splitlines() if line.startswith("warning: ")] == ["t4", "v100-sxm2-16"]


def judged(total_bytes: int, **changes: Any) -> Verdict:
    return verdict(made(micro_batch_size=2, seq_len=512), DEVICE.replace(total_bytes=total_bytes, **changes))


def test_a_verdict_is_a_line_and_remedies_where_they_are_needed() -> None:
    needed = judged(GIB).needed_bytes
    roomy = judged(2 * needed)
    low, _, high = roomy.needed_interval
    assert " ".join(str(roomy).split()) == (
        f"<gpu&1>: fits, > 99 %. {gib(needed)} needed ({low / GIB:.2f} to {high / GIB:.2f}), "
        f"{gib(2 * needed)} usable: {gib(needed)} to spare."
    )
    for total in (needed, needed // 2):
        found = judged(total)
        for remedy in found.remedies:
            row = rf"  {gib(remedy.saves_bytes)} +{gib(remedy.needed_bytes)}  {remedy.status}\n"
            assert re.search(row, f"{found}\n")


def test_a_verdict_says_when_no_remedy_is_enough() -> None:
    assert "None of these is enough" in str(judged(GIB))
    assert "None of these is enough" not in str(judged(judged(GIB).needed_bytes - 1))


def test_what_was_detected_is_called_free() -> None:
    assert "24.00 GiB usable" in str(judged(24 * GIB))
    assert "20.00 GiB free now" in " ".join(str(judged(24 * GIB, free_bytes=20 * GIB)).split())
    assert re.search(r"  free now +chance +verdict\n", fit_text([judged(24 * GIB, free_bytes=20 * GIB)]))


@pytest.mark.parametrize(
    ("total_gib", "limit", "says"),
    [
        (
            6,
            4096,
            r"micro_batch_size \d+: tight, > 99 % to run, \d+ % without giving back\. [^:]*: .*\n"
            r"micro_batch_size \d+ does not fit\.\n"
            r"The largest with a probability of 95 %: \d+\.",
        ),
        (
            24,
            2,
            r"micro_batch_size 2: fits, > 99 %\. [^:]*: .*\nThe search ends there; a higher limit may find more\.$",
        ),
    ],
)
def test_the_largest_says_what_stopped_the_search(total_gib: int, limit: int, says: str) -> None:
    device = DEVICE.replace(total_bytes=total_gib * GIB)
    found = max_micro_batch_size(MODEL, gpu=device, limit=limit, seq_len=64)
    text = re.sub(r"\n +", " ", str(found))
    assert re.search(says, text)
    assert all(line in text for line in recipe_lines(found.verdict.estimate.job))


def test_a_table_keeps_its_cells_and_aligns_its_columns() -> None:
    text = table([("a", 1, "x y"), ("bcd", 20, "")], ("name", "n", "rest"), right=(1,))
    assert text.splitlines() == ["  name      n  rest", "  a         1  x y", "  bcd      20"]
    assert table([("a", "1.10")], ("", "")) == "  a  1.10"
    assert table([("one two three", "x")], ("h", ""), wrap=7).splitlines() == ["  h", "  one two  x", "  three"]


# -- HTML --------------------------------------------------------------------------------------------------------------


TAGS = {
    *("div", "p", "b", "ul", "li", "span", "svg", "rect", "title", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}


class Page(HTMLParser):
    """Tags that close what they open, the text, and the bars."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.bars: list[dict[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        self.open.append(tag)
        if tag == "rect":
            self.bars.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("gpu", [None, DEVICE], ids=["no GPU", "a GPU"])
@methods
def test_the_bars_widths_sum_to_the_whole(method: str, gpu: Gpu | None) -> None:
    found = made(method, gpu)
    page = Page(found._repr_html_())
    bars = [bar for bar in page.bars if bar["fill"] != "none"]
    groups = process_groups(found)
    assert [bar["fill"] for bar in bars] == [COLOURS[group] for group in groups]
    widths, starts = ([float(str(bar[name])) for bar in bars] for name in ("width", "x"))
    whole = found.process_bytes
    scale = 640 / max(whole, gpu.usable_bytes if gpu else 0)
    assert sum(widths) == pytest.approx(whole * scale, abs=0.1 * len(bars))
    assert starts == pytest.approx([sum(widths[:n]) for n in range(len(bars))], abs=0.1 * len(bars))
    assert widths == pytest.approx([n * scale for n in groups.values()], abs=0.1)
    outline = [float(str(bar["width"])) for bar in page.bars if bar["fill"] == "none"]
    assert outline == ([pytest.approx(gpu.usable_bytes * scale - 1, abs=0.1)] if gpu else [])


def test_html_holds_the_numbers_of_the_text() -> None:
    found = made("full", DEVICE, optim="paged_adamw_8bit")
    text = Page(found._repr_html_()).text
    for n_bytes in (*found.groups.values(), found.allocated_bytes, found.reserved_bytes, found.process_bytes):
        assert gib(n_bytes) in text
    for line in (*recipe_lines(found.job), method_line(found.job), found.peak.name, *found.warnings):
        assert line in text


def test_html_of_a_verdict_holds_the_remedies() -> None:
    found = judged(judged(GIB).needed_bytes - 1)
    page = Page(found._repr_html_())
    assert f"{found.status} on <gpu&1>, {percent(found.probability)}: {gib(found.needed_bytes)} needed" in page.text
    for remedy in found.remedies:
        assert f"{remedy.change}{gib(remedy.saves_bytes)}{gib(remedy.needed_bytes)}{remedy.status}" in page.text
    assert "saves" not in Page(judged(24 * GIB)._repr_html_()).text


@pytest.mark.parametrize("show", [estimate_html, lambda e: verdict(e)._repr_html_()], ids=["estimate", "verdict"])
def test_names_are_escaped_in_html(show: Any) -> None:
    html = show(made("lora", DEVICE, target_modules="(.*<i>.*|.*q_proj)"))
    assert "<gpu&1>" in Page(html).text
    for raw in ("<b>small", "<gpu", "<i>"):
        assert raw not in html


def test_a_name_is_shown_as_it_is() -> None:
    assert MODEL.name in Page(made("lora", DEVICE)._repr_html_()).text
    assert MODEL.name in str(made())


class Table(HTMLParser):
    """Cells of every table, row by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            assert tag == "td" or dict(attrs)["scope"] in ("row", "col")
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_a_grid_of_two_sizes_is_a_table_of_one_against_the_other() -> None:
    grid = estimate_grid(MODEL, "lora", micro_batch_size=[[1], [2]], seq_len=[64, 128, 1024])
    head, *rows = Table(grid._repr_html_()).rows
    assert head == ["micro_batch_size \\ seq_len", "64", "128", "1,024"]
    peaks = [[gib(n) for n in row] for row in grid.allocated_bytes.tolist()]
    assert rows == [["1", *peaks[0]], ["2", *peaks[1]]]


def test_a_cell_that_no_point_fills_is_empty() -> None:
    grid = estimate_grid(MODEL, "lora", micro_batch_size=[1, 2, 2], seq_len=[64, 64, 128])
    assert [row[2] == "" for row in Table(grid._repr_html_()).rows[1:]] == [True, False]


@pytest.mark.parametrize(("n", "more"), [(1, None), (12, None), (13, 1), (500, 488)])
def test_other_grids_are_listed_and_the_rest_is_counted(n: int, more: int | None) -> None:
    grid = estimate_grid(MODEL, "full", seq_len=list(range(8, 8 + n)))
    html = grid._repr_html_()
    head, *rows = Table(html).rows
    assert head == ["micro_batch_size", "seq_len", "peak", "at"]
    assert len(rows) == min(n, 12)
    for row, size, peak, at in zip(rows, grid.seq_len, grid.allocated_bytes, grid.instant, strict=False):
        assert row == ["1", f"{size:,}", gib(peak), at]
    assert re.findall(r"and (\d+) more points", html) == ([str(more)] if more else [])
    assert f"{n:,} points" in html


def test_html_of_an_accuracy_holds_every_group_and_every_reason() -> None:
    group = Group("a&b", "lora", "allocated_max", 3, 0.0123, -0.0045, 0.01, -0.05, "row", 0.9, 0.031)
    found = Accuracy([group], [dataclasses.replace(group, stack="apart")], Counter({"<no>": 1234}), (0, 0), (0, 0), [])
    rows = Table(found._repr_html_()).rows
    errors = ["3", "1.23 %", "1.00 %", "-0.45 %", "-5.00 %", "90 %", "3.1 %"]
    assert rows[1] == ["a&b, lora, allocated_max", *errors]
    assert rows[3] == ["apart, lora, allocated_max", *errors]
    assert rows[-1] == ["<no>", "1,234"]
    assert "covered: rows" in Page(found._repr_html_()).text


SHOWN = {
    "estimate": lambda: made("lora", DEVICE),
    "verdict": lambda: judged(GIB),
    "grid": lambda: estimate_grid(MODEL, "lora", seq_len=[64, 128]),
    "accuracy": lambda: Accuracy([], [], Counter(a=1), (0, 0), (0, 0), []),
}
shown = pytest.mark.parametrize("name", SHOWN)


@shown
def test_html_needs_no_other_file(name: str) -> None:
    assert not re.search(r"https?:|<script|<style|<link|<img|url\(", SHOWN[name]()._repr_html_())


@shown
def test_html_sets_no_colour_of_text_without_its_background(name: str) -> None:
    """Black on nothing cannot be read on a dark page, nor white on a light one."""
    html = SHOWN[name]()._repr_html_()
    for style in re.findall(r"style='([^']*)'", html):
        given = dict(part.split(":", 1) for part in style.split(";"))
        text = given.get("color", "inherit")
        of_a_square = "aria-hidden='true' style='color:" in html and text in COLOURS.values()
        assert text == "inherit" or of_a_square or given.get("background", "").startswith("#")
        assert given.get("background", "transparent") == "transparent" or "color" in given


@pytest.mark.parametrize("status", palette.VERDICTS)
def test_a_verdict_is_read_on_its_background(status: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: a contrast of 4.5 at least; the words are black."""
    channels = [int(palette.VERDICTS[status][n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    assert (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) / 0.05 >= 4.5
    assert "color:#000" in judged(GIB)._repr_html_()


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("4194304", 4194304),
        ("24G", 24 * GIB),
        ("512M", 512 * MIB),
        ("4096 B", 4096),
        ("1KiB", KIB),
        ("24 GiB", 24 * GIB),
        ("24gib", 24 * GIB),
        ("1.5 MiB", 3 * MIB // 2),
        ("80 GB", 80 * 10**9),
        ("0.1 kB", 100),
        ("2TiB", 2048 * GIB),
        ("79.1875 GiB", 81088 * MIB),
        (" 1 TB ", 10**12),
        ("1.9999999999 B", 1),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_exactly(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "+1", "1e9", "nan", "inf", "1,5 GiB", "1 GiB GiB", "1 XiB", "0x10", "1.", ".5", "9" * 400, "²"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(
        InvalidValue, match=r"--gpu-memory = .*: expected a number of bytes, or a number followed by KiB"
    ):
        parse_bytes(text, name="--gpu-memory")


@pytest.mark.parametrize("text", ["24", "80", "1048575", "0.5"])
def test_a_small_number_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=rf"expected a unit behind so small a number; {text}GiB, or {text}B"):
        parse_bytes(text, name="--gpu-memory")


@given(st.integers(0, 1 << 60))
def test_printed_sizes_are_near_what_they_print(n_bytes: int) -> None:
    assert abs(parse_bytes(gib(n_bytes)) - n_bytes) <= GIB / 200 + n_bytes * 1e-15 + 1
    printed = human_bytes(n_bytes)
    step = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[printed.split()[1]]
    assert abs(parse_bytes(printed.replace(",", "")) - n_bytes) <= step / 20 + n_bytes * 1e-15 + 1
    assert human_bytes(-n_bytes) == (f"-{printed}" if n_bytes else printed)


@given(st.integers(0, 1 << 60))
@example(1023 * KIB)
@example(1002 * MIB)
def test_a_printed_size_is_short_enough_for_its_column(n_bytes: int) -> None:
    number, unit = human_bytes(n_bytes).split()
    assert unit == "GiB" or len(number) <= len("999.9")


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 30))
def test_rounding_up_gives_the_next_multiple(n: int, multiple: int) -> None:
    found = round_up(n, multiple)
    assert found % multiple == 0
    assert n <= found < n + multiple


def test_json_is_what_to_dict_holds() -> None:
    found = run("estimate", "qwen2.5-0.5b", "--seq-len", "64", "--json").json
    del found["verdict"]
    made_here = estimate("qwen2.5-0.5b", seq_len=64)
    assert json.loads(made_here.to_json()) == found == json.loads(json.dumps(made_here.to_dict()))
    assert "\n" not in made_here.to_json(indent=None)
