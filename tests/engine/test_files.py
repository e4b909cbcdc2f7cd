"""Files are written whole, where their names lead, by one program after another."""

import errno
import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.files import FileError, atomic_write, locked


def replace(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x"


def test_two_writers_at_once_write_whole_files(path):
    with atomic_write(path) as first:
        first.write(b"first")
        replace(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    with pytest.raises(ValueError, match="mine"), atomic_write(path):
        raise ValueError("mine")
    assert os.listdir(path.parent) == ["x"]


def test_a_link_and_a_mode_stay(path, tmp_path):
    link = tmp_path / "folder" / "link"
    link.parent.mkdir()
    link.symlink_to(path)
    replace(link, b"new")
    old_mask = os.umask(0o027)
    replace(tmp_path / "other", b"")
    os.umask(old_mask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640
    for mode in (0o600, 0o444, 0o666):
        path.chmod(mode)
        replace(link, f"{mode}".encode())
        assert path.read_text() == f"{mode}"
        assert path.stat().st_mode & 0o777 == mode
    assert link.is_symlink()
    assert os.listdir(link.parent) == ["link"]


def test_pipes_and_devices_are_written_to(path):
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(path) as file:
        file.write(b"ab")
        file.seek(0)
        file.write(b"c")
    assert os.read(reader, 9) == b"cb"
    assert path.is_fifo()
    screen, terminal = os.openpty()
    replace(Path(os.ttyname(terminal)), b"new")
    assert os.read(screen, 9) == b"new"
    for descriptor in (reader, screen, terminal):
        os.close(descriptor)


@pytest.mark.parametrize("name", ["/proc/self/fd/1", "link"])
def test_output_goes_on_after_a_file_in_it(tmp_path, capfd, name):
    """Here standard output is a file on a disk."""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    print("before")
    replace(tmp_path / name, b"file\n")
    print("after")
    assert capfd.readouterr().out == "before\nfile\nafter\n"


def test_one_after_another(path, tmp_path):
    def append(_: int) -> None:
        with locked(tmp_path):
            before = path.read_bytes()
            time.sleep(0.02)
            replace(path, before + b"x")

    path.touch()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(8)))
    assert path.read_bytes() == 8 * b"x"
    with locked(tmp_path / "missing"):
        pass


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EIO"])
def test_without_locks(tmp_path, monkeypatch, capsys, code):
    def refuse(*_) -> None:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(fcntl, "flock", refuse)
    if code == "EIO":
        with pytest.raises(FileError, match=f"^{tmp_path}: .*EIO"), locked(tmp_path):
            pass
        return
    for _ in range(2):
        with locked(tmp_path):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}: ")
    assert code in line
