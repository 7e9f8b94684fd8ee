"""Atomic files and folders, and locks on folders."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from cmsa_fast.system.files import locked, staged, write_atomically, write_json


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "second"):
        write_atomically(path, lambda target, text=text: target.write_text(text))  # type: ignore[misc]
        assert entries(tmp_path) == {"file": text.encode()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(target: Path) -> None:
        target.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert entries(tmp_path) == {"file": b"old"}


def test_content_that_is_not_json_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("name", ["set", "a [b]* c?", "\u00e9t\u00e9"])
def test_folder_appears_when_the_block_ends(tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep" / name
    with staged(target) as folder:
        (folder / "file").write_text("all")
        assert folder.parent == target.parent
        assert not target.exists()
    assert names(target.parent) == [name]
    assert (target / "file").read_text() == "all"


def test_empty_folder_is_filled_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    with staged(tmp_path / "link") as folder:
        (folder / "file").write_text("all")
    assert names(tmp_path) == ["link", "set"]
    assert (tmp_path / "link" / "file").read_text() == "all"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_failed_block_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop):
        fill(tmp_path / "set", "half", Mock(side_effect=stop))
    assert names(tmp_path) == []


def fill(target: Path, text: str, before_the_end: Callable[[], object]) -> None:
    with staged(target) as folder:
        (folder / "file").write_text(text)
        before_the_end()
        assert (folder / "file").read_text() == text


def test_second_process_to_finish_fails(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with pytest.raises(FileExistsError, match="set was created or filled in the meantime"):
        fill(target, "first", lambda: fill(target, "second", lambda: None))
    assert (target / "file").read_text() == "second"
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_destination_filled_in_the_meantime_is_unchanged(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "set"
    if kind == "folder":
        target.mkdir()
        target = target / "thesis"
    with pytest.raises(FileExistsError, match="meantime"):
        fill(tmp_path / "set", "ours", lambda: target.write_text("theirs"))
    assert target.read_text() == "theirs"
    assert names(tmp_path) == ["set"]
    if kind == "folder":
        assert names(tmp_path / "set") == ["thesis"]


def test_folders_of_killed_processes_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    code = """
        import sys, time
        from pathlib import Path
        from cmsa_fast.system.files import staged
        with staged(Path(sys.argv[1])) as folder:
            (folder / "file").write_text("half")
            print(folder, flush=True)
            time.sleep(60)
    """
    target = tmp_path / "set"
    (tmp_path / ".other.unfinished-1").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(code), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            theirs = Path(process.stdout.readline().strip())
            with pytest.raises(RuntimeError), staged(target):
                raise RuntimeError
            assert (theirs / "file").read_text() == "half"
        finally:
            process.send_signal(signal.SIGKILL)
    assert theirs.is_dir()
    with staged(target) as folder:
        (folder / "file").write_text("all")
    assert names(tmp_path) == [".other.unfinished-1", "set"]


def test_mount_point_is_refused_at_the_start() -> None:
    with pytest.raises(OSError, match="is a mount point"), staged(Path("/")):
        raise AssertionError


def test_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with locked(tmp_path) as held:
        assert held
        with (
            pytest.raises(BlockingIOError, match="another process is working in"),
            locked(tmp_path),
        ):
            pass
    with locked(tmp_path) as held:
        assert held
