"""Writing a file: whole or not at all, through links, and never in the place of a device or a pipe."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from command import run

from vramcalc.errors import OutputError
from vramcalc.files.writing import write_whole

TABLE = ("table", "--models=qwen2.5-0.5b", "--gpus=rtx-4090", "--methods=lora", "--output")


def test_a_pipe_stays_a_pipe_and_its_reader_gets_the_table(tmp_path: Path) -> None:
    pipe = tmp_path / "p"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    answer = run(*TABLE, pipe)
    assert (answer.status, answer.out) == (0, "")
    assert os.read(reading, 1 << 16).decode() == run(*TABLE[:-1]).out
    os.close(reading)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["p"]


def test_a_pipe_that_nobody_reads_is_an_error_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "p"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match=r"p cannot be written: No such device or address; give another path"):
        write_whole(pipe, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_devices_stay_devices() -> None:
    """As root a rename would replace the device for the whole machine; a link to it shows whether one was tried."""
    before = os.stat(os.devnull)
    write_whole(Path(os.devnull), "text")
    assert (before.st_rdev, before.st_ino) == (os.stat(os.devnull).st_rdev, os.stat(os.devnull).st_ino)
    with pytest.raises(OutputError, match="No space left on device"):
        write_whole(Path("/dev/full"), "text")


def test_a_socket_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(OutputError, match="cannot be written"):
            write_whole(path, "text")
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("exists", [True, False])
def test_through_a_link_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, link, other = tmp_path / "folder" / "target.md", tmp_path / "link.md", tmp_path / "other.md"
    if exists:
        target.write_text("before")
    link.symlink_to(target)
    other.symlink_to("link.md")
    assert run(*TABLE, other).status == 0
    assert (link.is_symlink(), other.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_text().startswith("| model")
    assert os.listdir(tmp_path / "folder") == ["target.md"]


def test_a_link_to_a_device_writes_to_the_device(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(os.devnull)
    write_whole(link, "text")
    assert os.readlink(link) == os.devnull


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o640), (0o600, 0o600), (0o4755, 0o755), (None, 0o644)])
def test_permissions_stay_and_new_files_have_the_usual_ones(tmp_path: Path, before: int | None, after: int) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.touch()
        path.chmod(before)
    mask = os.umask(0o022)
    try:
        write_whole(path, "text")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == after


@pytest.mark.parametrize(
    "path", ["x" * 300, "loop", ".", "file/inside", "a\0b", "/".join(["x" * 200] * 30)], ids=lambda path: path[:12]
)
def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written: .*; give another path"):
        write_whole(tmp_path / path, "text")
    assert sorted(os.listdir(tmp_path))[:2] == ["file", "loop"]


def test_text_that_is_none_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(path, "lone \udcff")
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["file"])


def test_names_of_any_length_that_a_folder_takes_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    write_whole(path, "text")
    assert path.read_text() == "text"
