"""Promises of a directory that is divided into parts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from image_loader.errors import DirectoryError
from image_loader.flock import takes
from image_loader.store.directory import Directory, view
from image_loader.store.partitions import Partitions, has_driver, open_lock, runs
from test_directory import is_open, modes_below, refusing


def test_it_has_one_driver_at_a_time_as_seen_from_elsewhere(tmp_path: Path) -> None:
    first = Partitions(tmp_path / "images", 256)
    assert has_driver(first.path)
    with pytest.raises(DirectoryError, match="another run with --cluster is under way"):
        Partitions(tmp_path / "images", 256)
    first.close()
    assert not has_driver(first.path)
    Partitions(tmp_path / "images", 256).close()


def test_it_is_made_with_its_parents_and_has_a_folder_for_the_runs(tmp_path: Path) -> None:
    place = tmp_path / "shared" / "images"
    Partitions(place, 256).close()
    assert runs(place) == place / ".image_loader" / "cluster"
    assert runs(place).is_dir()


@pytest.mark.parametrize("umask", [0, 0o027])
def test_all_of_it_follows_the_umask(tmp_path: Path, umask: int) -> None:
    place = tmp_path / "images"
    before = os.umask(umask)
    try:
        Partitions(place, 256).close()
        os.close(open_lock(place, 1))
    finally:
        os.umask(before)
    modes = modes_below(place)
    assert len(modes) == 7
    assert set(modes.values()) == {("folder", 0o777 & ~umask), ("file", 0o666 & ~umask)}


def test_a_note_of_the_parts_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    note = tmp_path / ".image_loader" / "partitions"
    note.mkdir(parents=True)
    with pytest.raises(DirectoryError, match=f"^{note}: Is a directory"):
        Partitions(tmp_path, 256)


def test_the_number_of_parts_stays(tmp_path: Path) -> None:
    Partitions(tmp_path, 256).close()
    with pytest.raises(DirectoryError, match="into 256 parts, not 64; set PARTITIONS"):
        Partitions(tmp_path, 64)
    Partitions(tmp_path, 256).close()


def test_one_machine_does_not_use_it_and_changes_nothing_there(tmp_path: Path) -> None:
    Partitions(tmp_path, 256).close()
    before = sorted(tmp_path.rglob("*"))
    for use in (Directory, view):
        with pytest.raises(DirectoryError, match="was filled with --cluster; use --cluster"):
            use(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    Directory(tmp_path / "3f").close()


def test_a_directory_of_one_machine_is_not_divided(tmp_path: Path) -> None:
    Directory(tmp_path).close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DirectoryError, match="was filled without --cluster"):
        Partitions(tmp_path, 256)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_is_locked_by_one_task_at_a_time(tmp_path: Path) -> None:
    directory = Partitions(tmp_path, 256)
    first, second, other = (open_lock(directory.path, number) for number in (63, 63, 64))
    try:
        assert takes(first)
        assert not takes(second)
        assert takes(other)
        os.close(first)
        first = os.dup(other)
        assert takes(second)
    finally:
        for descriptor in (first, second, other):
            os.close(descriptor)
        directory.close()


def test_a_place_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match="move that file away"):
        Partitions(tmp_path / "file", 256)


def test_a_driver_that_cannot_lock_the_directory_leaves_no_file_open(tmp_path: Path) -> None:
    Partitions(tmp_path, 256).close()
    with pytest.raises(DirectoryError, match=os.strerror(errno.ENOLCK)):
        refusing("flock", errno.ENOLCK, lambda: Partitions(tmp_path, 256))
    assert not is_open(tmp_path / ".image_loader" / "driver")


def test_a_driver_that_closes_the_directory_twice_closes_nothing_else(tmp_path: Path) -> None:
    directory = Partitions(tmp_path, 256)
    directory.close()
    other = os.open(os.devnull, os.O_RDONLY)  # It gets the same number.
    directory.close()
    os.close(other)
    assert not has_driver(directory.path)


def test_an_empty_note_with_another_hard_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "images" / ".image_loader").mkdir(parents=True)
    (tmp_path / "victim").touch()
    (tmp_path / "images" / ".image_loader" / "partitions").hardlink_to(tmp_path / "victim")
    with pytest.raises(DirectoryError, match="has another hard link; remove it"):
        Partitions(tmp_path / "images", 256)
    assert (tmp_path / "victim").read_bytes() == b""


@pytest.mark.parametrize("name", ["", "cluster", "locks", "partitions", "driver"])
def test_a_link_in_the_place_of_what_is_its_own_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    place = tmp_path / "images" / ".image_loader" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "outside" / ("new" if name in ("partitions", "driver") else "."))
    with pytest.raises(DirectoryError, match=f"images/.image_loader/?{name}: "):
        Partitions(tmp_path / "images", 256)
    assert list((tmp_path / "outside").iterdir()) == []
