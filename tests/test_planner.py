"""What is decided about each line, by a real index and a real directory."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from conftest import SETTINGS
from exchange import png
from image_loader import planner as planner_module
from image_loader.lists import naming
from image_loader.model import Image, Job, Lifetime, Line, Record, Status, Validators
from image_loader.planner import Plan, Planner, beginning
from image_loader.store.directory import Directory
from image_loader.store.index import FILE, Index
from image_loader.url import parse

BODY = png("planner", 600)
WHOLE_SECOND = 1_600_000_000


class House:
    """A directory with its index, and what plans for it."""

    def __init__(self, path: Path, **changes: object) -> None:
        """Open both."""
        self.directory = Directory(path)
        self.index = Index(self.directory.hidden / FILE, 3600.0)
        settings = SETTINGS._replace(**changes)  # type: ignore[arg-type]
        found = beginning(self.directory, self.index)
        self.planner = Planner(settings, self.directory, self.index, found)

    def close(self) -> None:
        """Close both."""
        self.index.close()
        self.directory.close()

    def plan(self, *urls: str) -> Plan:
        """Plan for some lines."""
        return self.planner.plan([Line(number, url, parse(url)) for number, url in enumerate(urls, 1)])

    def job(self, url: str) -> Job:
        """Return the job for a URL that has to be asked for."""
        plan = self.plan(url)
        assert plan.outcomes == []
        (job,) = plan.jobs
        return job

    def save(self, *urls: str, age: float = 0.0, body: bytes = BODY) -> None:
        """Save an image for each URL, which is fresh for an hour from ``age`` seconds ago."""
        for job in self.plan(*urls).jobs:
            file = job.name.file(".png")
            with self.directory.partial(file, naming.key(file)) as partial:
                partial.write(body)
                state = partial.commit(WHOLE_SECOND)
            sha256, checked = hashlib.sha256(body).hexdigest(), time.time() - age
            lifetime, said = Lifetime(3600.0, date=checked), Validators('"1"')
            times = (state.st_mtime_ns, state.st_ctime_ns)
            image = Image(file, len(body), *times, "image/png", sha256, said, lifetime, checked, checked)
            self.index.record(job.row, image)
        self.index.flush()

    def row(self, url: str) -> Record:
        """Return what the index has of a URL."""
        self.index.flush()
        digest = parse(url).digest
        return self.index.look_up([digest])[digest]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Open the directory, once or repeatedly: for each run that looks at it."""
    houses: list[House] = []

    def make(**changes: object) -> House:
        for house in houses:
            house.close()
        houses[:] = [House(tmp_path / "images", **changes)]
        return houses[0]

    yield make
    for house in houses:
        house.close()


URLS = tuple(f"http://h/{number}.png" for number in range(5))


# Whether a file is as it was recorded


def test_what_was_saved_is_fresh(opened: Callable[..., House]) -> None:
    opened().save(*URLS)
    plan = opened().plan(*URLS)
    assert [outcome.status for outcome in plan.outcomes] == [Status.FRESH] * 5
    assert (plan.jobs, plan.rest) == ([], [])


def test_what_is_over_its_lifetime_is_asked_for_conditionally(opened: Callable[..., House]) -> None:
    opened().save(URLS[0], age=4000)
    assert opened().job(URLS[0]).validators == Validators('"1"')


def test_what_was_checked_in_a_time_to_come_is_never_fresh(opened: Callable[..., House]) -> None:
    """The clock was set back."""
    opened().save(URLS[0], age=-60)
    assert opened().job(URLS[0]).validators == Validators('"1"')


@pytest.mark.parametrize("age", [0, 4000], ids=["fresh", "over"])
@pytest.mark.parametrize("times", [os.utime, lambda path: path.chmod(0o600)], ids=["mtime", "ctime"])
def test_where_only_times_differ_the_content_decides_and_the_row_is_brought_up_to_date(
    opened: Callable[..., House], times: Callable[[Path], None], age: float
) -> None:
    house = opened()
    house.save(URLS[0], age=age)
    times(house.directory.path / "0.png")
    house = opened()
    plan = house.plan(URLS[0])
    assert ([outcome.status for outcome in plan.outcomes] == [Status.FRESH]) == (age == 0)
    assert [job.validators for job in plan.jobs] == ([Validators('"1"')] if age else [])
    image, state = house.row(URLS[0]).image, house.directory.stat("0.png")
    assert image is not None
    assert state is not None
    assert (image.mtime_ns, image.ctime_ns) == (state.st_mtime_ns, state.st_ctime_ns)
    assert image.saved <= image.checked < time.time()


def test_a_changed_byte_with_the_old_size_and_time_is_found(opened: Callable[..., House]) -> None:
    house = opened()
    house.save(URLS[0])
    path = house.directory.path / "0.png"
    before = path.stat()
    path.write_bytes(BODY[:-1] + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    job = opened().job(URLS[0])
    assert (job.image, job.validators) == (None, Validators())


def test_a_shorter_file_is_not_read(opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    house = opened()
    house.save(URLS[0])
    (house.directory.path / "0.png").write_bytes(BODY[:-1])
    house = opened()
    monkeypatch.setattr(house.directory, "digest", lambda _: pytest.fail("was read"))
    assert house.job(URLS[0]).validators == Validators()


def test_with_force_nothing_is_read(opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    house = opened()
    house.save(URLS[0])
    os.utime(house.directory.path / "0.png")
    house = opened(force=True)
    monkeypatch.setattr(house.directory, "digest", lambda _: pytest.fail("was read"))
    assert house.job(URLS[0]).validators == Validators()


def test_a_row_of_an_earlier_version_is_trusted_as_it_was_and_learns_its_ctime(
    opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = opened()
    house.save(URLS[0])
    record = house.row(URLS[0])
    assert record.image is not None
    house.index.record(record.row, record.image._replace(ctime_ns=None))
    house = opened()
    monkeypatch.setattr(house.directory, "digest", lambda _: pytest.fail("was read"))
    assert [outcome.status for outcome in house.plan(URLS[0]).outcomes] == [Status.FRESH]
    assert house.row(URLS[0]).image == record.image


def test_much_to_read_is_left_for_later_and_nothing_of_it_is_lost(
    opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_module, "_READ_MAX", len(BODY))
    house = opened()
    house.save(*URLS)
    for path in house.directory.path.glob("*.png"):
        os.utime(path)
    planner = opened().planner
    rest: Sequence[Line] = [Line(number, url, parse(url)) for number, url in enumerate(URLS + URLS[:1], 1)]
    told = []
    while rest:
        plan = planner.plan(rest)
        assert len(plan.outcomes) <= 3
        told += plan.outcomes
        rest = plan.rest
    assert sorted((outcome.line, outcome.status) for outcome in told) == [
        *((number, Status.FRESH) for number in range(1, 6)),
        (6, Status.SKIPPED),
    ]


# Files that the index does not know


def put(path: Path, body: bytes = BODY, seconds: float = WHOLE_SECOND) -> None:
    """Put a file there, as another program does."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(body)
    os.utime(path, (seconds, seconds))


def test_on_the_first_run_an_image_of_another_program_is_adopted(opened: Callable[..., House], tmp_path: Path) -> None:
    put(tmp_path / "images" / "0.png")
    job = opened().job(URLS[0])
    assert (job.name.path, job.foreign) == ("0.png", False)
    assert job.validators == Validators(None, "Sun, 13 Sep 2020 12:26:40 GMT")
    assert job.image is not None


@pytest.mark.parametrize(
    ("body", "seconds"),
    [(b"My diary", WHOLE_SECOND), (b"", WHOLE_SECOND), (BODY, WHOLE_SECOND + 0.5), (BODY, 9e9)],
    ids=["no image", "empty", "no whole second", "to come"],
)
def test_on_the_first_run_any_other_file_may_be_anothers(
    opened: Callable[..., House], tmp_path: Path, body: bytes, seconds: float
) -> None:
    put(tmp_path / "images" / "0.png", body, seconds)
    job = opened().job(URLS[0])
    assert (job.name.path, job.foreign, job.validators, job.image) == ("0.png", True, Validators(), None)


def test_where_there_is_an_index_a_file_that_it_does_not_know_is_anothers(
    opened: Callable[..., House], tmp_path: Path
) -> None:
    opened().save(URLS[0])
    put(tmp_path / "images" / "1.png")
    job = opened().job(URLS[1])
    assert (job.name.path, job.name.complete, job.foreign) == (f"1-{parse(URLS[1]).sha256[:8]}", False, False)


def test_a_file_under_a_name_that_was_given_but_never_filled_may_be_anothers(opened: Callable[..., House]) -> None:
    """It may as well be what a killed run could not record any more."""
    house = opened()
    house.save(URLS[0])
    assert not house.job(URLS[1]).foreign
    put(house.directory.path / "1.png")
    job = opened().job(URLS[1])
    assert (job.name.path, job.foreign, job.validators, job.image) == ("1.png", True, Validators(), None)


def test_what_another_run_has_claimed_and_saved_meanwhile_is_not_adopted(
    opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = opened()
    house.save(URLS[0])
    house.job(URLS[1])
    house = opened()
    put(house.directory.path / "1.png")
    monkeypatch.setattr(house.index, "look_up", lambda _: {})  # The claim comes between looking up and claiming.
    job = house.job(URLS[1])
    assert (job.name.path, job.foreign, job.validators) == ("1.png", True, Validators())


def lose_index(house: House) -> None:
    """Remove the index."""
    house.close()
    for path in house.directory.hidden.glob("index*"):
        path.unlink()


def test_where_the_index_was_lost_a_file_has_to_prove_itself(opened: Callable[..., House]) -> None:
    house = opened()
    house.save(URLS[0])
    lose_index(house)
    job = opened().job(URLS[0])
    assert (job.name.path, job.foreign) == ("0.png", True)
    assert job.validators == Validators(None, "Sun, 13 Sep 2020 12:26:40 GMT")


def test_where_the_index_was_lost_a_file_with_a_hash_is_its_urls_own(opened: Callable[..., House]) -> None:
    house = opened()
    url = "http://h/photo?id=7"
    house.save(url)
    lose_index(house)
    job = opened().job(url)
    assert (job.name.path, job.foreign) == (f"photo-{parse(url).sha256[:8]}.png", False)
    assert job.image is not None


# Names that the file system refuses


@pytest.mark.parametrize(("refused", "path"), [("", "a:b?.png"), ('"*:<>?|', "a_b_-{}")])
def test_characters_that_the_file_system_refuses_are_replaced_in_the_next_name(
    opened: Callable[..., House], refused: str, path: str
) -> None:
    house = opened()
    house.directory.refused_characters = refused
    url = "http://h/a:b%3F.png"
    assert house.job(url).name.path == path.format(parse(url).sha256[:8])


# What looking costs


def test_a_file_is_looked_at_once(opened: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    house = opened()
    looked: list[str] = []
    look = house.directory.stat

    def counted(file: str) -> os.stat_result | None:
        looked.append(file)
        return look(file)

    monkeypatch.setattr(house.directory, "stat", counted)
    house.plan(*URLS)
    assert looked == [f"{number}.png" for number in range(5)]
