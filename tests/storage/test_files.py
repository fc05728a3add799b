"""Durable files: complete under their names or not there, and one process at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from clipql.errors import DatabaseLocked, DiskFull, StorageError
from clipql.storage import catalog, files


def test_a_replaced_file_has_the_new_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    files.replace(path, b"old")
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "segment.npy"
    with files.new_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" whole")
    assert path.read_bytes() == b"half whole"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_file_that_is_given_up_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with files.new_file(tmp_path / "segment.npy") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_room_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "manifest.json"
    files.replace(path, b"old")

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=rf"the disk is full while writing {path}: [\d,]+ MB are free") as caught:
        files.replace(path, b"new")
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_disk_that_has_room_and_no_more_names_is_said_to_be_full_of_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in order: sizes of blocks; blocks in all, free, for us; files in all, free, for us; flags; the longest name
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 900, 500, 500, 800, 3, 3, 0, 255)))
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, "")))
    with pytest.raises(DiskFull, match=r": 2 MB and 3 files are free"):
        files.replace(tmp_path / "manifest.json", b"new")


def test_another_error_of_the_system_says_what_was_being_done_to_which_file(tmp_path: Path) -> None:
    path = tmp_path / "not there" / "manifest.json"
    with pytest.raises(StorageError) as caught:
        files.replace(path, b"new")
    assert str(caught.value) == f"cannot finish writing {path}: No such file or directory"


def test_removing_takes_files_links_and_folders_and_accepts_that_there_is_none(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").write_text("x")
    for name in ("link", "folder", "nothing"):
        files.remove(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_locked_folder_names_its_holder_until_it_is_released(tmp_path: Path) -> None:
    lock = files.FolderLock(tmp_path)
    with pytest.raises(DatabaseLocked, match=rf"{tmp_path} is open in process {os.getpid()} \("):
        files.FolderLock(tmp_path)
    lock.release()
    lock.release()
    again = files.FolderLock(tmp_path)
    again.release()


def test_a_lock_file_left_by_a_dead_process_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 (gone)" * 30)
    files.FolderLock(tmp_path).release()
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} (")


def test_a_manifest_that_cannot_be_read_is_reported_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StorageError, match=f"{tmp_path}/manifest.json"):
        catalog.load(tmp_path)
