"""Files that a user names: whatever they are or hold, an answer or one typed error at once, and never a bug."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Ran, run
from configs import CONFIGS, write_config
from profile_rows import row

import vramcalc
from vramcalc import tables
from vramcalc.errors import DataError
from vramcalc.files.reading import read_bytes, read_text
from vramcalc.memory.calibration.file import current, own_path, shipped, shipped_path
from vramcalc.planning import prices
from vramcalc.profiling.campaign import read_campaign
from vramcalc.profiling.campaign_yaml import MOST_VALUES, load
from vramcalc.profiling.row_log import append
from vramcalc.profiling.rows import parse, read_profiles

SMALL = "qwen2.5-0.5b"
COMMANDS: dict[str, tuple[str, ...]] = {
    "estimate": ("estimate", "{}"),
    "accuracy": ("accuracy", "{}"),
    "accuracy --time": ("accuracy", "{}", "--time"),
    "prices": ("prices", "--price-table={}"),
    "plan": ("plan", SMALL, "--gpu=l4", "--examples=10", "--tokens-per-example=10", "--price-table={}"),
    "table": ("table", f"--models={SMALL}", "--gpus=l4", "--methods=lora", "--price-table={}"),
    "campaign": ("campaign", "{}", "--dry-run"),
    "calibrate": ("calibrate", "{}", "--dry-run"),
}


def asked(command: str, path: object) -> Ran:
    return run(*(part.replace("{}", str(path)) for part in COMMANDS[command]))


def refused(answer: Ran) -> str:
    """The one line of a typed error."""
    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1), answer
    return answer.err


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(10 << 30)
    return path


def _link_loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _binary(path: Path) -> Path:
    path.write_bytes(b"\xff\xfe\x00\x01" * 100)
    return path


SPECIAL: dict[str, Callable[[Path], Path]] = {
    "a pipe": _pipe,
    "a device without end": lambda _: Path("/dev/zero"),
    "ten gigabytes": _sparse,
    "a loop of links": _link_loop,
    "an empty folder": _folder,
    "no text": _binary,
    "nothing": lambda path: path,
    "a long name": lambda path: path.with_name("x" * 300),
    "a long path": lambda path: path.joinpath(*["x" * 200] * 30),
    "nobody's home": lambda _: Path("~nobody-of-that-name/x.json"),
    "a file as a folder": lambda path: Path(__file__) / "x",
}


@pytest.mark.parametrize("made", SPECIAL)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_good_file_is_one_line_at_once(tmp_path: Path, command: str, made: str) -> None:
    path = SPECIAL[made](tmp_path / "given.json")
    assert path.name[:5] in refused(asked(command, path))


def test_the_reader_takes_what_it_may_and_not_a_byte_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert read_bytes(path, 8) == b"12345678"
    with pytest.raises(OSError, match="more than 7 bytes"):
        read_bytes(path, 7)
    with pytest.raises(OSError, match="null"):
        read_bytes(Path("a\0b"))


# -- byte order marks --------------------------------------------------------------------------------------------------

MARK = "\N{BYTE ORDER MARK}"


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    text = {
        "config.json": json.dumps(CONFIGS["llama"]),
        "prices.csv": prices.shipped_path().read_text(),
        "rows.jsonl": f"{row().to_json()}\n",
        "one-row.jsonl": row().to_json(),
        "jobs.yaml": f"jobs: [{{model: {SMALL}}}]",
    }
    for folder, mark in ((plain, ""), (marked, MARK)):
        folder.mkdir()
        for name, content in text.items():
            (folder / name).write_text(mark + content, encoding="utf-8")
    estimates = [vramcalc.estimate(str(folder), seq_len=32).allocated_bytes for folder in (plain, marked)]
    assert estimates[0] == estimates[1]
    assert prices.read(plain / "prices.csv") == prices.read(marked / "prices.csv")
    assert read_profiles(plain / "rows.jsonl") == read_profiles(marked / "rows.jsonl")
    assert read_profiles(plain / "one-row.jsonl") == read_profiles(marked / "one-row.jsonl")
    assert read_campaign(plain / "jobs.yaml").jobs == read_campaign(marked / "jobs.yaml").jobs
    assert read_text(marked / "config.json") == text["config.json"]


def test_rows_are_added_to_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    for content in (f"{row().to_json()}\n", row().to_json(), ""):
        path = tmp_path / "rows.jsonl"
        path.write_text(MARK + content, encoding="utf-8")
        append(path, row().to_json())
        assert len(read_profiles(path)) == 1 + bool(content)


# -- rows --------------------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
HUGE = "9" * 400


def _paths(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every number."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*way, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield way


ROW = json.loads(row().to_json())
NUMBERS = list(_paths(ROW))


def with_value(way: tuple[Any, ...], value: Any) -> str:
    changed = json.loads(json.dumps(ROW))
    inner = changed
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    return json.dumps(changed)


def test_a_number_of_400_digits_is_refused_wherever_it_stands() -> None:
    assert len(NUMBERS) > 50
    for way in NUMBERS:
        for value in (int(HUGE), -int(HUGE)):
            with pytest.raises(DataError) as caught:
                parse(with_value(way, value))
            assert len(str(caught.value)) < 500, way


@pytest.mark.parametrize("line", [DEEP, f'{{"schema": {DEEP}', HUGE * 20, f'{{"schema": {HUGE}}}'], ids=range(4))
def test_a_row_too_deep_or_too_long_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    for content in (line, f"{line}\n"):
        path.write_text(content)
        assert len(refused(asked("calibrate", path))) < 600


def test_a_row_is_that_of_its_recipe() -> None:
    assert parse(json.dumps(ROW)).job_id == ROW["job_id"]
    with pytest.raises(DataError, match=r"job_id = '[0-9a-f]{16}': expected '[0-9a-f]{16}', that of its recipe"):
        parse(with_value(("recipe", "training", "micro_batch_size"), 3))
    with pytest.raises(DataError, match="job_id = '0123456789abcdef': expected"):
        parse(with_value(("job_id",), "0123456789abcdef"))


def test_a_row_of_a_release_with_fewer_fields_keeps_its_identity() -> None:
    """What a recipe did not say then is not part of what it is called."""
    import hashlib

    older = json.loads(json.dumps(ROW))
    del older["recipe"]["live_blocks"]
    text = json.dumps(older["recipe"], sort_keys=True, separators=(",", ":"))
    older["job_id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert parse(json.dumps(older)).recipe.live_blocks == 0


# -- a user's own calibration ------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Path]:
    """The place of one's own calibration."""
    path = own_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


BROKEN: dict[str, str] = {
    "deep": DEEP,
    "deep inside": f'{{"schema": "vramcalc-calibration", "version": 1, "recipes": {DEEP}',
    "a long number": f'{{"schema": {HUGE * 20}}}',
    "a long version": f'{{"schema": "vramcalc-calibration", "version": {HUGE}}}',
    "text": "hello",
    "empty": "",
}


@pytest.mark.parametrize("name", [*BROKEN, "a pipe", "an empty folder", "no text", "ten gigabytes"])
def test_a_broken_calibration_stops_nothing_and_is_named(own: Path, name: str) -> None:
    if name in BROKEN:
        own.write_text(BROKEN[name])
    else:
        SPECIAL[name](own)
    found = current()
    assert found.recipes == shipped().recipes
    assert found.note.startswith(str(own))
    assert "the shipped calibration stays in force" in found.note
    answer = run("estimate", SMALL, "--seq-len=32")
    assert (answer.status, answer.err) == (0, "")


def _leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything, of lists and objects with free names the first alone."""
    yield way
    if isinstance(value, dict):
        for key in value if len(value) < 12 else list(value)[:2]:
            yield from _leaves(value[key], (*way, key))
    elif isinstance(value, list) and value:
        yield from _leaves(value[0], (*way, 0))


def test_no_value_inside_a_calibration_stops_an_estimate(own: Path) -> None:
    whole = json.loads(shipped_path().read_text())
    whole["recipes"] = whole["recipes"][:40]
    ways = [way for way in _leaves(whole) if way]
    assert len(ways) > 20
    estimate = vramcalc.estimate(SMALL, seq_len=32)
    for n, way in enumerate(ways):
        for m, value in enumerate((0, -1, 10**400, 1e308, "", [], {}, None)):
            changed = json.loads(json.dumps(whole))
            inner = changed
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = value
            own.write_text(json.dumps(changed))
            os.utime(own, ns=(n * 100 + m, n * 100 + m))
            calibration = current()
            try:
                estimate.interval("process", calibration=calibration)
            except Exception as err:
                pytest.fail(f"{way} = {value!r}: {err!r}")


# -- campaigns ---------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


def campaign(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"jobs: [{{model: *a9}}]\n{BOMB}", "undefined alias"),
        (f"{BOMB}jobs:\n- model: *a9\n", f"more than {MOST_VALUES:,} values"),
        (f"{BOMB}", "more than"),
        ("jobs: &a [*a]\n", "alias inside what it stands for"),
        ("jobs: &a\n- model: *a\n", "alias inside what it stands for"),
        (DEEP, "nested too deeply"),
        ("jobs: [{model: qwen2.5-0.5b, seq_len: " + HUGE + "}]", "expected at most"),
        ("jobs: [{model: qwen2.5-0.5b, seq_len: " + HUGE * 20 + "}]", "is no YAML"),
        ("jobs: [{model: qwen2.5-0.5b, seq_len: 2020-13-45}]", "is no YAML"),
        ("jobs: [{model: qwen2.5-0.5b, target_modules: [[q_proj]]}]", "target_modules = "),
        ("jobs: [{model: qwen2.5-0.5b, modules_to_save: [{a: b}]}]", "modules_to_save = "),
        ("jobs: [{model: [1, 2]}]", "model"),
        ("jobs: [{model: qwen2.5-0.5b, method: {a: 1}}]", "method"),
        ("jobs: [{model: qwen2.5-0.5b, gradient_checkpointing: [1]}]", "gradient_checkpointing"),
        ("jobs: [{model: qwen2.5-0.5b, layers: [1]}]", "num_hidden_layers"),
        ("jobs: [{model: qwen2.5-0.5b, find_smallest: [1]}]", "find_smallest"),
        ("jobs: [{model: qwen2.5-0.5b, seq_lens: {a: 1}}]", "seq_lens"),
        ("jobs: [{model: qwen2.5-0.5b, product: {seq_len: 5}}]", "expected a list of values"),
        ("jobs: [{model: qwen2.5-0.5b, ? [1] : 2}]", "is no YAML"),
        ("jobs: [{model: qwen2.5-0.5b, seq_len: !!python/name:os.system }]", "is no YAML"),
        ("a\0b", "is no YAML"),
    ],
    ids=range(21),
)
def test_a_campaign_that_is_none_is_a_short_line(tmp_path: Path, text: str, says: str) -> None:
    line = refused(asked("campaign", campaign(tmp_path, text)))
    assert says in line
    assert len(line) < 700


def test_merge_keys_take_over_what_is_not_given(tmp_path: Path) -> None:
    text = (
        f"base: &base {{model: {SMALL}, seq_len: 32, rank: 8}}\n"
        "more: &more {<<: *base, rank: 4}\n"
        "jobs: [{<<: *more, seq_len: 64}, {<<: [*more, *base], method: full}, {<<: *base, seq_len: 16}]\n"
    )
    jobs = load(text)["jobs"]
    assert jobs == [
        {"model": SMALL, "seq_len": 64, "rank": 4},
        {"model": SMALL, "seq_len": 32, "rank": 4, "method": "full"},
        {"model": SMALL, "seq_len": 16, "rank": 8},
    ]
    own = campaign(tmp_path, f"defaults: &d {{model: {SMALL}, seq_len: 32}}\njobs: [{{<<: *d, rank: 4}}]\n")
    (job,) = read_campaign(own).jobs
    assert (job.recipe.training.seq_len, job.recipe.method.kind) == (32, "lora")


def test_a_name_given_twice_is_refused_beside_a_merge_too() -> None:
    import yaml

    with pytest.raises(yaml.YAMLError, match="'b' is given twice"):
        load("a: &a {b: 1}\nc: {<<: *a, b: 2, b: 3}")


def test_a_folder_does_not_hide_a_campaign_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hopper").mkdir()
    assert asked("campaign", "hopper").status == 0


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["measurements", "prices"])
@pytest.mark.parametrize("value", [HUGE, "x", "٤"], ids=range(3))
def test_no_cell_of_a_table_is_a_bug(tmp_path: Path, name: str, value: str) -> None:
    import csv

    rows = [row for row in tables.read(name) if row.get("method", "lora") == "lora"][:1]
    path = tmp_path / "table.csv"
    command = {"measurements": "accuracy", "prices": "prices"}[name]
    for column in rows[0]:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerow({**rows[0], column: value})
        answer = asked(command, path)
        assert answer.status in (0, 1, 2), (column, answer.err)


def test_a_config_of_the_user_is_read_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "config.json", CONFIGS["llama"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked("estimate", "~/config.json").status == 0
