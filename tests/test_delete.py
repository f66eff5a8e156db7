"""Promises of --delete: what left the list goes, after a whole run, and nothing else ever does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conftest import Loader, Run, impatient, urls_of
from image_loader import load
from image_loader.errors import OptionError, TooManyDeletionsError
from image_loader.model import Outcome, Status
from server import Server


@pytest.fixture
def saved(server: Server, loader: Loader) -> list[str]:
    """Ten images that are in the directory, fresh for an hour."""
    urls = urls_of(server, 10)
    server.headers = {url.removeprefix(server.origin): {"Cache-Control": HOUR} for url in urls}
    assert loader.run(urls).counts == (10, 0, 0, 0)
    return urls


def rows_of_index(directory: Path) -> set[str]:
    """Return the names in the index."""
    with closing(sqlite3.connect(directory / ".image_loader" / "index.sqlite3")) as index:
        return {name for (name,) in index.execute("SELECT name FROM image")}


def deleted(run: Run) -> set[str]:
    """Return the files that a run says it has deleted."""
    return {row["file"] for row in run.rows if row["status"] == "deleted"}


HOUR = "max-age=3600"


def names(*numbers: int) -> set[str]:
    return {f"{number:04}.png" for number in numbers}


def test_what_left_the_list_is_deleted_with_its_row_and_told(loader: Loader, saved: list[str]) -> None:
    before = loader.run(saved).rows
    run = loader.run(saved[3:], "--delete", "-v")
    assert (run.status, run.counts) == (0, (0, 7, 0, 0))
    assert deleted(run) == names(0, 1, 2)
    assert run.files == rows_of_index(loader.directory) == names(*range(3, 10))
    assert "       3 deleted (12.0 kB)" in run.stderr
    assert "deleted  0000.png" in run.stderr
    (row,) = [row for row in run.rows if row["file"] == "0000.png"]
    (was,) = [row for row in before if row["file"] == "0000.png"]
    assert (row["url"], row["bytes"], row["sha256"]) == ("", was["bytes"], was["sha256"])


def test_without_the_option_nothing_is_deleted(loader: Loader, saved: list[str]) -> None:
    assert loader.run(saved[3:]).files == names(*range(10))


def test_what_comes_back_is_downloaded_again_under_its_name(loader: Loader, saved: list[str]) -> None:
    loader.run(saved[3:], "--delete")
    run = loader.run(saved, "--delete")
    assert run.counts == (3, 7, 0, 0)
    assert run.files == names(*range(10))


def test_load_deletes_too(server: Server, saved: list[str], loader: Loader) -> None:
    outcomes = list(load(saved[1:], loader.directory, delete=True))
    (gone,) = [outcome for outcome in outcomes if outcome.status is Status.DELETED]
    assert (gone.line, gone.url, gone.file) == (0, "", "0000.png")


# When nothing is deleted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"# no URL\n", b"ftp://host/a.png\nno URL\n"], ids=["empty", "comment", "bad"]
)
def test_a_list_without_any_url_deletes_nothing(loader: Loader, saved: list[str], content: bytes) -> None:
    run = loader.run(content, "--delete", "--max-delete", "100")
    assert run.files == names(*range(10))
    assert "nothing was deleted" in run.stderr


def test_more_than_half_is_refused_with_both_numbers_and_how_to_allow_it(loader: Loader, saved: list[str]) -> None:
    run = loader.run(saved[6:], "--delete")
    assert run.status == 2
    assert run.files == names(*range(10))
    assert "6 of 10 images are no longer in the list, more than half" in run.stderr
    assert "--max-delete 6" in run.stderr
    assert loader.run(saved[6:], "--delete", "--max-delete", "6").files == names(6, 7, 8, 9)


def test_half_of_them_is_not_more_than_half(loader: Loader, saved: list[str]) -> None:
    assert loader.run(saved[5:], "--delete").files == names(5, 6, 7, 8, 9)


def test_new_images_of_a_wrong_list_do_not_count(server: Server, loader: Loader, saved: list[str]) -> None:
    run = loader.run([server.url(f"/other/{number}.png") for number in range(50)], "--delete")
    assert run.status == 2
    assert names(*range(10)) <= run.files


def test_the_limit_of_the_user_takes_the_place_of_the_half(loader: Loader, saved: list[str]) -> None:
    run = loader.run(saved[2:], "--delete", "--max-delete", "1")
    assert run.status == 2
    assert run.files == names(*range(10))
    assert "2 of 10 images are no longer in the list, more than --max-delete 1" in run.stderr


def test_load_raises_after_all_outcomes(loader: Loader, saved: list[str]) -> None:
    told: list[Outcome] = []
    with pytest.raises(TooManyDeletionsError) as caught:
        told.extend(load(saved[8:], loader.directory, delete=True))
    assert (caught.value.count, caught.value.images) == (8, 10)


def test_max_delete_alone_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^max_delete: can only be used with --delete"):
        load([], tmp_path, max_delete=3)


def test_after_an_interrupted_run_nothing_is_deleted(server: Server, loader: Loader, saved: list[str]) -> None:
    running = loader.start([*saved[5:], *urls_of(server, 3, "held")], "--delete")
    server.wait_for(lambda: server.at_work >= 1)
    running.send(signal.SIGTERM)
    run = running.finish()
    assert run.status == 143
    assert names(*range(10)) <= run.files


def test_after_a_list_that_cannot_be_read_to_its_end_nothing_is_deleted(
    loader: Loader, saved: list[str], tmp_path: Path
) -> None:
    import gzip

    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress("".join(url + "\n" for url in saved[5:]).encode())[:-6])
    run = loader.run(path, "--delete")
    assert run.status == 2
    assert run.files == names(*range(10))


def test_after_an_error_of_the_callers_own_list_nothing_is_deleted(loader: Loader, saved: list[str]) -> None:
    def urls() -> Iterator[str]:
        yield from saved[1:]
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        list(load(urls(), loader.directory, delete=True))
    assert (loader.directory / "0000.png").exists()


def test_after_an_iterator_that_is_closed_early_nothing_is_deleted(loader: Loader, saved: list[str]) -> None:
    outcomes = load(saved[1:], loader.directory, delete=True)
    next(outcomes)
    outcomes.close()
    assert (loader.directory / "0000.png").exists()


# What is never deleted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["status-404", "closing-at-once", "page-jpeg"])
def test_an_image_whose_line_fails_stays(server: Server, loader: Loader, behaviour: str) -> None:
    server.healthy = True
    urls = [*urls_of(server, 3), server.url(f"/{behaviour}/failing.png")]
    loader.run(urls)
    server.healthy = False
    run = loader.run(urls, "--delete", "--force", "--retries", "0")
    assert run.row(urls[3])["status"] == "failed"
    assert "failing.png" in run.files


def test_images_of_a_host_that_is_down_stay(new_server: Callable[..., Server], loader: Loader) -> None:
    down = new_server()
    urls = urls_of(down, 30)
    loader.run(urls)
    down.__exit__()
    run = loader.run(urls, "--delete", "--retries", "0", "--timeout", "1", command=impatient(0.0))
    assert run.counts == (0, 0, 0, 30)
    assert len(run.files) == 30


def test_images_of_duplicates_and_of_urls_that_are_signed_anew_stay(server: Server, loader: Loader) -> None:
    signed = server.url("/a.png?X-Amz-Date=20261125T000000Z&X-Amz-Signature=") + "{}"
    loader.run([signed.format(1), server.url("/b.png")])
    run = loader.run([signed.format(2), server.url("/b.png"), server.url("/b.png#again")], "--delete")
    assert len(run.files) == 2
    assert deleted(run) == set()


@pytest.mark.parametrize("known", [True, False], ids=["edited", "as long as before"])
def test_a_file_that_was_edited_stays_and_is_no_longer_ours(loader: Loader, saved: list[str], known: bool) -> None:
    path = loader.directory / "0000.png"
    content = b"mine" if known else b"x" * path.stat().st_size
    state = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    run = loader.run(saved[1:], "--delete", "-v")
    assert path.read_bytes() == content
    assert deleted(run) == set()
    assert "0000.png" not in rows_of_index(loader.directory)
    assert "0000.png: it is no longer in the list, but has changed" in run.stderr
    assert loader.run(saved, "--delete").row(saved[0])["file"] != "0000.png"
    assert path.read_bytes() == content


def test_files_of_others_links_and_folders_stay(loader: Loader, saved: list[str], tmp_path: Path) -> None:
    (loader.directory / "notes.txt").write_text("mine")
    (loader.directory / "folder").mkdir()
    victim = tmp_path / "victim.png"
    victim.write_text("elsewhere")
    for name in ("0000.png", "0001.png", "0002.png"):
        (loader.directory / name).unlink()
    (loader.directory / "0000.png").symlink_to(victim)
    (loader.directory / "0001.png").mkdir()
    os.mkfifo(loader.directory / "0002.png")
    run = loader.run(saved[3:], "--delete")
    assert run.status == 0
    assert victim.read_text() == "elsewhere"
    assert (loader.directory / "0000.png").is_symlink()
    assert (loader.directory / "0001.png").is_dir()
    assert (loader.directory / "0002.png").is_fifo()
    assert (loader.directory / "notes.txt").exists()
    assert (loader.directory / "folder").is_dir()


def test_a_directory_that_was_copied_is_read_and_the_right_files_go(loader: Loader, saved: list[str]) -> None:
    shutil.copytree(loader.directory, loader.home / "copy", copy_function=shutil.copy)
    list(load(saved[2:], loader.home / "copy", delete=True))
    assert {path.name for path in (loader.home / "copy").glob("*.png")} == names(*range(2, 10))


def test_a_row_without_its_file_is_forgotten(loader: Loader, saved: list[str]) -> None:
    (loader.directory / "0000.png").unlink()
    run = loader.run(saved[1:], "--delete")
    assert deleted(run) == set()
    assert rows_of_index(loader.directory) == names(*range(1, 10))


def test_a_name_that_was_never_filled_is_free_again(server: Server, loader: Loader, saved: list[str]) -> None:
    loader.run([*saved, server.url("/status-404/x.png")])
    assert "x.png" in rows_of_index(loader.directory)
    loader.run(saved, "--delete")
    assert "x.png" not in rows_of_index(loader.directory)


@pytest.mark.parametrize("layout", ["path", "hash", "host"])
def test_folders_of_a_layout_go_when_they_are_empty(server: Server, loader: Loader, layout: str) -> None:
    urls = [server.url(f"/image/{folder}/{name}.png") for folder in "ab" for name in "xy"]
    loader.run(urls, "--layout", layout)
    kept = loader.run(urls[2:], "--layout", layout, "--delete")
    assert len(kept.files) == 2
    folders = {path for path in loader.directory.rglob("*") if path.is_dir() and ".image_loader" not in path.parts}
    assert folders == {
        loader.directory / parent for name in kept.files for parent in Path(name).parents if parent != Path()
    }


def test_a_folder_with_a_file_of_another_stays(server: Server, loader: Loader) -> None:
    urls = [server.url("/image/a/x.png"), server.url("/image/b/x.png")]
    loader.run(urls, "--layout", "path")
    (folder,) = loader.directory.glob("*/image/a")
    (folder / "mine.txt").write_text("mine")
    loader.run(urls[1:], "--layout", "path", "--delete")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_what_cannot_be_deleted_is_told_and_its_row_stays(loader: Loader, server: Server, ordinary: Any) -> None:
    urls = [server.url(f"/image/{folder}/x.png") for folder in "abc"]
    loader.run(urls, "--layout", "path")
    (folder,) = loader.directory.glob("*/image/a")
    folder.chmod(0o555)
    try:
        run = loader.run(urls[1:], "--layout", "path", "--delete", command=ordinary)
    finally:
        folder.chmod(0o755)
    assert run.status == 1
    assert "could not be deleted" in run.stderr
    assert len(run.files) == len(rows_of_index(loader.directory)) == 3
    assert len(loader.run(urls[1:], "--layout", "path", "--delete").files) == 2


# Overlapping runs, and two lists ------------------------------------------------------------------------------------


def test_while_another_run_is_under_way_nothing_is_deleted(server: Server, loader: Loader, saved: list[str]) -> None:
    other = loader.start(urls_of(server, 1, "held"), results=False)
    server.wait_for(lambda: server.at_work == 1)
    run = loader.run(saved[1:], "--delete")
    assert (run.status, deleted(run)) == (0, set())
    assert "--delete: another run is under way" in run.stderr
    other.end()
    assert deleted(loader.run(saved[1:], "--delete")) == names(0)


def test_of_two_runs_with_one_list_that_overlap_the_last_one_deletes(
    server: Server, loader: Loader, saved: list[str]
) -> None:
    first = loader.start([*saved[1:], *urls_of(server, 1, "held")], "--delete", results=False)
    server.wait_for(lambda: server.at_work == 1)
    loader.run(saved[1:], "--delete")
    assert (loader.directory / "0000.png").exists()
    server.gate.set()
    assert first.finish().status == 0
    assert not (loader.directory / "0000.png").exists()


def test_two_lists_for_one_directory_delete_each_others_images_up_to_the_half(
    server: Server, loader: Loader, saved: list[str]
) -> None:
    other = urls_of(server, 4, "image", "?other")
    loader.run(other)
    run = loader.run(saved, "--delete")
    assert len(deleted(run)) == 4
    assert loader.run(other, "--delete").status == 2


def test_what_another_run_saved_or_checked_meanwhile_stays(server: Server, loader: Loader, saved: list[str]) -> None:
    first = loader.start([*saved[1:], server.url("/gated/x.png")], "--delete", results=False)
    server.wait_for(lambda: server.at_work == 1)
    loader.run([saved[0], server.url("/new.png")], "--revalidate")
    server.gate.set()
    run = first.finish()
    assert run.status == 0
    assert {"0000.png", "new.png"} <= run.files


# Kills ----------------------------------------------------------------------------------------------------------------


def _pngs(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*.png") if ".image_loader" not in path.parts]


def _check_agreement(directory: Path, kept: set[str]) -> None:
    files = {path.relative_to(directory).as_posix() for path in _pngs(directory)}
    assert files == rows_of_index(directory) | kept


@pytest.mark.slow
def test_after_a_kill_at_any_moment_the_next_run_makes_index_and_directory_agree(
    server: Server, loader: Loader
) -> None:
    chance = random.Random(7)
    urls = [server.url(f"/image/{number % 40}/{number:04}.png?size=300") for number in range(1200)]
    server.headers = {url.removeprefix(server.origin): {"Cache-Control": HOUR} for url in urls}
    options = ("--layout", "path", "--delete", "--max-delete", "2000")
    loader.run(urls, *options)
    mine = loader.directory / "mine.png"
    mine.write_bytes(b"of another program")
    in_mid_deletion = 0
    for _ in range(50):
        kept = chance.sample(urls, 600)
        running = loader.start(kept, *options, results=False)
        # At any time, or soon after the first file has gone.
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0.05, 0.4))
        else:
            while running.process.poll() is None and len(_pngs(loader.directory)) > len(urls):
                pass
            time.sleep(chance.uniform(0, 0.03))
        running.send(signal.SIGKILL)
        running.process.wait()
        in_mid_deletion += 601 < len(_pngs(loader.directory)) < len(urls) + 1
        assert mine.read_bytes() == b"of another program"
        run = loader.run(kept, *options, "--retries", "5")
        assert run.status == 0, run.stderr
        assert {row["status"] for row in run.rows if row["url"]} <= {"saved", "fresh"}
        assert len(run.files) == 601
        _check_agreement(loader.directory, {"mine.png"})
        loader.run(urls, *options[:2])
    assert in_mid_deletion >= 10


def test_a_lock_file_of_a_run_that_may_only_read_it_is_shared_nevertheless(
    server: Server, loader: Loader, saved: list[str], ordinary: tuple[str, ...]
) -> None:
    (loader.directory / ".image_loader" / "runs").chmod(0o444)
    other = loader.start(urls_of(server, 1, "held"), results=False, command=ordinary)
    server.wait_for(lambda: server.at_work == 1)
    assert "another run is under way" in loader.run(saved[1:], "--delete").stderr
    other.end()
    assert deleted(loader.run(saved[1:], "--delete")) == names(0)
