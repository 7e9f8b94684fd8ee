"""Folders that appear as a whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cmsa_fast.system.files import locked, staged


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["set", "a [b]* c?", "\u00e9t\u00e9"])
def test_it_appears_when_the_block_ends(tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep" / name
    with staged(target) as folder:
        (folder / "file").write_text("all")
        assert folder.parent == target.parent
        assert not target.exists()
    assert names(target.parent) == [name]
    assert (target / "file").read_text() == "all"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    with staged(tmp_path / "link") as folder:
        (folder / "file").write_text("all")
    assert names(tmp_path) == ["link", "set"]
    assert (tmp_path / "link" / "file").read_text() == "all"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def fail() -> None:
        with staged(tmp_path / "set") as folder:
            (folder / "file").write_text("half")
            raise stop

    with pytest.raises(stop):
        fail()
    assert names(tmp_path) == []


def fill(target: Path, text: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    with staged(target) as folder:
        (folder / "file").write_text(text)
        meanwhile()
        assert (folder / "file").read_text() == text


def test_two_at_once_do_not_destroy_each_other(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with pytest.raises(FileExistsError, match="set appeared or was filled meanwhile"):
        fill(target, "first", lambda: fill(target, "second"))
    assert (target / "file").read_text() == "second"
    assert names(tmp_path) == ["set"]


def test_a_folder_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def write() -> None:
        (tmp_path / "set" / "thesis").write_text("years of work")

    (tmp_path / "set").mkdir()
    with pytest.raises(FileExistsError, match="meanwhile"):
        fill(tmp_path / "set", "ours", write)
    assert names(tmp_path / "set") == ["thesis"]
    assert names(tmp_path) == ["set"]


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="meanwhile"):
        fill(tmp_path / "set", "ours", lambda: (tmp_path / "set").write_text("years of work"))
    assert (tmp_path / "set").read_text() == "years of work"
    assert names(tmp_path) == ["set"]


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_fills_is_not(
    tmp_path: Path,
) -> None:
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


def test_a_mount_point_is_refused_before_the_work() -> None:
    with pytest.raises(OSError, match="is a mount point"), staged(Path("/")):
        raise AssertionError


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with locked(tmp_path) as kept:
        assert kept
        with (
            pytest.raises(BlockingIOError, match="another process is at work in"),
            locked(tmp_path),
        ):
            pass
    with locked(tmp_path) as kept:
        assert kept
