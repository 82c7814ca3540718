"""How a command ends: answers, bad input and bugs have their own statuses, and no name it prints steers a terminal."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import process, run

from vramcalc.cli.bugs import STATUS, TRACEBACK
from vramcalc.cli.terminal import painted
from vramcalc.errors import DataError, DoesNotFit

ESTIMATE = ("estimate", "qwen2.5-0.5b", "--seq-len=64")


def failing(monkeypatch: pytest.MonkeyPatch, err: BaseException) -> None:
    """Every estimate of the command ends in an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise err

    monkeypatch.setattr("vramcalc.cli.jobs.estimate_of", fail)


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("x"),
        AssertionError(),
        RecursionError("too deep"),
        MemoryError(),
        OSError(errno.EIO, "no"),
        ValueError("a\nb"),
    ],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_is_one_line_with_how_to_report_it_and_never_an_answer(
    monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    failing(monkeypatch, bug)
    monkeypatch.delenv(TRACEBACK, raising=False)
    answer = run(*ESTIMATE)
    assert (answer.status, answer.out, answer.err.count("\n")) == (STATUS, "", 1)
    assert answer.err.startswith(f"vramcalc: a bug in vramcalc, not in what was given: {type(bug).__name__}")
    assert re.search(r" \(cli/jobs\.py, line \d+\); please report it with .* VRAMCALC_TRACEBACK=1$", answer.err.strip())


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_traceback_is_shown_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str, shown: bool) -> None:
    failing(monkeypatch, RuntimeError("\x1b]0;title\x07"))
    monkeypatch.setenv(TRACEBACK, value)
    answer = run(*ESTIMATE)
    assert answer.status == STATUS
    assert ("Traceback (most recent call last)" in answer.err) is shown
    assert answer.err.replace("\n", "").isprintable()


def test_what_is_meant_and_what_is_interrupted_are_no_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    for err, status in ((DoesNotFit("no"), 1), (DataError("bad"), 2), (KeyboardInterrupt(), 130)):
        failing(monkeypatch, err)
        assert run(*ESTIMATE).status == status


def test_a_broken_installation_is_no_answer_either() -> None:
    script = "import sys; sys.modules['typer'] = None; from vramcalc.__main__ import main; main()"
    answer = process(python=("-c", script))
    assert (answer.status, answer.out, answer.err.count("\n")) == (STATUS, "", 1)


def test_a_full_disk_behind_stdout_is_an_error_of_its_own() -> None:
    with open("/dev/full", "w") as full:
        answer = process("models", stdout=full)
    assert (answer.status, answer.err) == (
        2,
        "vramcalc: stdout cannot be written: No space left on device; give it a place to go\n",
    )


def test_readers_that_go_away_from_stderr_change_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = process("estimate", "nothing-of-that-name", stderr=writing)
    os.close(writing)
    assert (answer.status, answer.out) == (2, "")


# -- what is printed ---------------------------------------------------------------------------------------------------

STEERS = "\x1b]0;title\x07\x9b31m\r\x7f\u202e"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A good configuration under a name that would steer a terminal."""
    from configs import CONFIGS, write_config

    path = tmp_path / f"{STEERS}.json"
    write_config(path, CONFIGS["llama"])
    return path


def calm(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ("estimate", "{}"),
        ("estimate", "{}", "--json"),
        ("estimate", "{}", "--gpu=t4"),
        ("fit", "{}", "--gpu=t4", "--method=lora"),
        ("max", "{}", "--gpu=t4", "--limit=2"),
        ("table", "--models={}", "--gpus=t4", "--methods=lora"),
        ("table", "--models={}", "--gpus=t4", "--methods=lora", "--format=csv"),
        ("estimate", "{}.missing.json"),
        ("estimate", "{}", "--target-modules={}"),
        ("estimate", "{}", "--stack={}"),
        ("accuracy", "{}"),
        ("prices", "--price-table={}"),
        ("campaign", "{}"),
        ("calibrate", "{}"),
        ("{}",),
        ("estimate", "{}", "--{}"),
    ],
    ids=" ".join,
)
def test_names_do_not_steer_the_terminal(hostile: Path, arguments: tuple[str, ...]) -> None:
    answer = run(*(part.replace("{}", str(hostile)) for part in arguments))
    assert answer.status in (0, 1, 2)
    assert calm(answer.out)
    assert calm(answer.err)
    if "--json" in arguments:
        assert answer.json["model"] == str(hostile)


def test_colours_of_a_name_are_not_those_of_a_verdict() -> None:
    assert painted("\x1b[31m: fits").startswith("\\x1b[31m: \x1b[32m")


def test_a_name_that_is_no_text_is_spelled_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vramcalc", "estimate", os.fsencode(tmp_path / "x") + b"\xff.json"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"\\udcff.json does not exist" in done.stderr


def test_a_terminal_that_knows_ascii_alone_is_given_ascii(tmp_path: Path) -> None:
    answer = process("estimate", tmp_path / "é.json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert answer.status == 2
    assert "\\xe9.json does not exist" in answer.err
