"""Files of rows: killed at any instant, torn at any byte, written by several at once, they lose no finished row."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vramcalc.errors import DataError
from vramcalc.profiling.row_log import append, read_lines

WRITER = """
import json, sys
from pathlib import Path
from vramcalc.profiling.row_log import (append)
name, n, width = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for i in range(n):
    append(Path(sys.argv[1]), json.dumps({"writer": name, "n": i, "fill": name * width}))
    print(i, flush=True)
"""


def writer(path: Path, name: str, n: int, width: int = 3000) -> subprocess.Popen[str]:
    arguments = [str(path), name, str(n), str(width)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def rows(path: Path) -> list[dict[str, object]]:
    lines, torn = read_lines(path)
    assert not torn
    return [json.loads(line) for line in lines]


def test_rows_come_back_in_order_with_what_they_held(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    for n in range(5):
        assert append(path, json.dumps({"n": n, "text": "grün\u2028"}))
    assert [row["n"] for row in rows(path)] == [0, 1, 2, 3, 4]
    assert path.read_bytes().count(b"\n") == 5


def test_a_row_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert append(path, "{}", unless=lambda lines: "{}" in lines)
    assert not append(path, "{}", unless=lambda lines: "{}" in lines)
    assert path.read_text() == "{}\n"


def test_wherever_the_last_row_was_torn_the_others_stay_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, last = json.dumps({"n": 1, "text": "ü" * 20}), json.dumps({"n": 2, "text": "grün"}, ensure_ascii=False)
    whole = f"{first}\n{last}\n".encode()
    start = len(first.encode()) + 1
    for cut in range(start, len(whole) + 1):
        path.write_bytes(whole[:cut])
        lines, torn = read_lines(path)
        # A row that lacks its line break alone is whole.
        finished = [first, last] if cut >= len(whole) - 1 else [first]
        assert lines == finished
        assert bool(torn) == (start < cut < len(whole) - 1)
        append(path, '{"n":3}')
        assert read_lines(path) == ([*finished, '{"n":3}'], "")


def test_a_file_that_holds_only_a_torn_row_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1, "te')
    append(path, '{"n":2}')
    assert path.read_bytes() == b'{"n":2}\n'


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_a_random_moment_every_row_that_was_reported_is_there_and_whole(tmp_path: Path, seed: int) -> None:
    path, chance = tmp_path / "rows.jsonl", random.Random(seed)  # noqa: S311 - any moment will do
    reported = 0
    for turn in range(3):
        process = writer(path, "ab"[turn % 2], 10_000, chance.choice([1, 5_000, 200_000]))
        assert process.stdout
        for _ in range(chance.randint(1, 12)):
            process.stdout.readline()
            reported += 1
        size, waited_for = path.stat().st_size, chance.randint(0, 4000)
        while path.stat().st_size < size + waited_for:
            pass
        process.kill()
        reported += len(process.stdout.read().splitlines())
        process.wait()
        process.stdout.close()
        lines, _ = read_lines(path)
        assert len(lines) >= reported
        # A row may be on the disk although nobody was told any more.
        reported = len(lines)
        assert all(set(json.loads(line)) == {"writer", "n", "fill"} for line in lines)


def test_several_writers_never_mix_their_rows(tmp_path: Path) -> None:
    path, n = tmp_path / "rows.jsonl", 40
    writers = [writer(path, name, n, 20_000) for name in "abc"]
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    found = rows(path)
    assert len(found) == 3 * n
    for name in "abc":
        own = [row for row in found if row["writer"] == name]
        assert [row["n"] for row in own] == list(range(n))
        assert {row["fill"] for row in own} == {name * 20_000}


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="give a file that can be written"):
        append(tmp_path / "file" / "rows.jsonl", "{}")
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(DataError, match="no regular file; give a file of profile rows"):
            read_lines(path)
        with pytest.raises(DataError, match="no regular file; give a file of profile rows"):
            append(path, "{}")


FULL_DISK = """
import resource, sys
from pathlib import Path
from vramcalc.profiling.row_log import (append)
path = Path(sys.argv[1])
append(path, '{"n": 1}')
size = path.stat().st_size + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
append(path, '{"n": 2}')
"""


@pytest.mark.parametrize("room", [0, 4])
def test_where_a_row_does_not_fit_on_the_disk_none_of_it_stays(tmp_path: Path, room: int) -> None:
    path = tmp_path / "rows.jsonl"
    script = [sys.executable, "-c", FULL_DISK, str(path), str(room)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DataError" in done.stderr
    assert path.read_text() == '{"n": 1}\n'
