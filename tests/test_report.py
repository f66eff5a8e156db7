"""Promises of the report: a page that is whole, harmless, free of secrets, and that a browser shows."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from PIL import Image

from conftest import Loader, limited, urls_of
from image_loader.cli import report as reports
from image_loader.cli.summary import Tally
from image_loader.errors import DirectoryError, OptionError, ResultsFileError
from image_loader.model import Change, Outcome, Reason, Status
from server import Server

CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, so no browser shows the page")
SCRIPT = "<script>document.title='overrun'</script>"
HOSTILE_NAMES = (
    "\"><img src=x onerror=document.title='overrun'>.png",
    "' onload='document.title=1'.png",
    "<script>document.title='overrun'.png",
    "javascript:document.title='overrun'.png",
    "a b#c?d%41&amp;é日本.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "W" * 240 + ".png",
)
HOSTILE_URLS = (
    f"javascript:{SCRIPT}",
    f'http://h/">{SCRIPT}',
    f"data:text/html,{SCRIPT}",
    "http://h&amp;'onclick=x/",
    "\x1b[31m\u202egpj.exe",
    "http://h/" + "a" * 50_000,
)


class Page(HTMLParser):
    """A page as a browser parses it: its elements, in order, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        """Return what an attribute says, wherever such an element has it."""
        found = (attributes for name, attributes in self.elements if name == tag and attribute in attributes)
        return [attributes[attribute] or "" for attributes in found]

    @property
    def failed_links(self) -> list[str]:
        return [link for link in self.values("a", "href") if urlsplit(link).scheme]

    @property
    def images(self) -> list[bytes]:
        """The paths of the images, below the page's own directory."""
        return [unquote_to_bytes(source) for source in self.values("img", "src")]

    @property
    def names(self) -> list[str]:
        return re.findall(r'<span class="name">(.*?)</span>', self.source)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def saved(file: str, line: int = 1, size: int = 20_100) -> Outcome:
    url = f"https://user:SECRET@host/{file}?SECRET#SECRET"
    outcome = Outcome(line, url, file, Status.SAVED, None, None, 200, "image/png", size, "ab" * 32, 1, 0.05)
    return outcome._replace(change=Change.NEW)


def fresh(file: str) -> Outcome:
    return Outcome(1, f"https://host/{file}", file, Status.FRESH, bytes=100)


def failed(url: str, reason: Reason = Reason.HTTP_STATUS, detail: str = "404 Not Found") -> Outcome:
    return Outcome(7, url, None, Status.FAILED, reason, detail, 404, attempts=1, seconds=0.1)


class Report(reports.Report):
    """A report on a run whose outcomes are counted before, as the command counts them."""

    def __init__(self, path: Path, directory: Path) -> None:
        self._tally = Tally()
        super().__init__(path, directory, self._tally)

    def write(self, outcome: Outcome) -> None:
        self._tally.add(outcome)
        super().write(outcome)


def report(images: Path, outcomes: Sequence[Outcome], path: Path | None = None) -> Page:
    path = path or images.parent / "report.html"
    with Report(path, images) as file:
        for outcome in outcomes:
            file.write(outcome)
    return Page(path)


def paint(path: Path, colour: str) -> str:
    Image.new("RGB", (60, 40), colour).save(path, "PNG")
    return path.name


def chromium(page: Path, home: Path, *options: str) -> str:
    """Have the browser load a page; return the document as it then is."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={home / 'browser'}", *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# What it tells.


def test_every_outcome_is_counted(images: Path) -> None:
    page = report(images, [saved("a.png"), fresh("b.png"), fresh("c.png"), failed("http://h/d.png")])
    figures = re.findall(r"<dt>(\w+).*?</dt><dd>(\d+)</dd>", page.source)
    assert figures == [("saved", "1"), ("fresh", "2"), ("skipped", "0"), ("failed", "1")]
    assert "saved, 20.1" in page.source


def test_failures_are_grouped_by_host_and_reason_with_the_worst_host_first(images: Path) -> None:
    outcomes = [failed(f"http://bad/{number}.png") for number in range(12)]
    outcomes += [failed("http://bad/x.png", Reason.TIMEOUT), *[failed("https://good:8443/y.png")] * 2, failed("x")]
    page = report(images, outcomes)
    groups = re.findall(r"<summary><span.*?>(.*?)</span><span.*?>(.*?)</span><b>(\d+)</b>", page.source)
    assert groups == [
        ("bad", "HTTP status 404", "12"),
        ("bad", "timeout", "1"),
        ("good:8443", "HTTP status 404", "2"),
        ("no valid URL", "HTTP status 404", "1"),
    ]
    assert "line 7: http://bad/0.png" in page.text
    assert "404 Not Found" in page.text
    assert "and 2 more" in page.text


def test_images_of_this_run_come_first_and_marked_the_later_ones_before_the_earlier(images: Path) -> None:
    page = report(images, [saved("a.png"), fresh("b.png"), saved("c.png"), fresh("d.png")])
    assert page.names == ["c.png", "a.png", "d.png", "b.png"]
    assert page.values("span", "class").count("new") == 2


def test_new_and_changed_images_are_marked_apart_and_those_with_the_same_bytes_not_at_all(images: Path) -> None:
    outcomes = [saved(f"{change}.png")._replace(change=change) for change in Change]
    page = report(images, [*outcomes, outcomes[0]])
    classes = page.values("span", "class")
    assert (classes.count("new"), classes.count("changed"), classes.count("same")) == (2, 1, 0)
    assert "(2 new, 1 changed, 1 the same as before)" in page.text


def test_failures_of_a_host_are_grouped_by_status(images: Path) -> None:
    statuses = (404, 404, 403)
    page = report(images, [failed(f"http://h/{status}.png")._replace(http_status=status) for status in statuses])
    assert re.findall(r'<span class="reason quiet">(.*?)</span><b>(\d+)', page.source) == [
        ("HTTP status 404", "2"),
        ("HTTP status 403", "1"),
    ]


def test_what_redirects_of_several_images_led_to_is_shown_with_its_count(images: Path) -> None:
    led = [("http://cdn/none.png?SECRET", 3), ("http://cdn/a.png", 1), ("http://cdn/sold-out.png", 2)]
    page = report(images, [saved("x.png")._replace(final_url=url) for url, count in led for _ in range(count)])
    assert re.findall(r"<li><b>(\d+)</b> (?:<a [^>]*>)?(.*?)(?:</a>)?</li>", page.source) == [
        ("3", "http://cdn/none.png?…"),
        ("2", "http://cdn/sold-out.png"),
    ]
    assert "SECRET" not in page.source
    assert "placeholders" not in report(images, [saved("x.png")._replace(final_url="http://cdn/a.png")]).text


def test_sizes_and_times_are_plotted(images: Path) -> None:
    page = report(images, [saved(f"{size}.png", size=size) for size in (0, 500, 500, 50_000, 5_000_000_000)])
    assert len(page.values("rect", "x")) == 4 + 4 + 1  # the shares of the statuses, four bins of sizes, one of times
    assert re.search(r"Size</b> median about 450.B, largest 5.GB", page.source)


def test_a_run_without_any_outcome_has_a_page_too(images: Path) -> None:
    assert "0 URLs" in report(images, []).text


@pytest.mark.parametrize("fault", [None, DirectoryError("/srv: no space left; <b>free</b> some")])
def test_a_run_that_was_ended_says_so(images: Path, fault: Exception | None) -> None:
    path = images.parent / "report.html"
    outcome = failed("http://h/", Reason.INTERRUPTED) if fault is None else saved("a.png")
    try:
        with Report(path, images) as file:
            file.write(outcome)
            if fault is not None:
                raise fault
    except DirectoryError:
        pass
    page = Page(path)
    assert "The run was ended before the list was." in page.text
    assert str(fault or "") in page.text


def test_what_ended_the_run_counts_more_than_a_page_that_cannot_be_written(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = images.parent / "gone" / "report.html"
    path.parent.mkdir()
    with pytest.raises(DirectoryError, match="no space left"), Report(path, images) as file:
        file.write(saved("a.png"))
        path.parent.rmdir()
        raise DirectoryError("no space left")
    assert f"{path}: cannot be written" in caplog.text


# Memory.


def test_memory_stays_flat(images: Path) -> None:
    def outcomes(start: int, number: int) -> Iterator[Outcome]:
        for count in range(start, start + number):
            yield saved(f"{count:07}.png")._replace(final_url=f"http://host{count}/" + "a" * (count % 2000))
            yield failed(f"http://host{count}/" + "a" * 1000, detail="x" * 1000)

    with Report(images.parent / "report.html", images) as file:
        for outcome in outcomes(0, 4_000):
            file.write(outcome)
        tracemalloc.start()
        try:
            for outcome in outcomes(4_000, 20_000):
                file.write(outcome)
            # The images that were shown first made room for others of the same size.
            assert tracemalloc.get_traced_memory()[0] < 5_000_000
        finally:
            tracemalloc.stop()
    page = Page(images.parent / "report.html")
    assert len(page.names) == 3000
    assert "the 3,000 newest are shown, 21,000 more are in the directory" in page.text
    assert "and 23,500 more on other hosts" in page.text
    assert len(page.source) < 5_000_000


# The file.


def test_the_page_is_replaced_only_when_it_is_whole(images: Path) -> None:
    path = images.parent / "report.html"
    path.write_text("old")
    with Report(path, images) as file:
        file.write(saved("a.png"))
        assert path.read_text() == "old"
    assert Page(path).names == ["a.png"]
    assert {entry.name for entry in images.parent.iterdir()} == {"images", "report.html"}


def test_a_page_that_does_not_fit_leaves_the_old_one_and_nothing_else(images: Path) -> None:
    path = images.parent / "report.html"
    path.write_text("old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        full = pytest.raises(ResultsFileError, match=r"report\.html.*File too large")
        with full, limited(resource.RLIMIT_FSIZE, 5000):
            report(images, [saved("a.png")])
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert {entry.name for entry in images.parent.iterdir()} == {"images", "report.html"}


def test_a_run_that_never_began_leaves_the_old_page(images: Path) -> None:
    path = images.parent / "report.html"
    path.write_text("old")
    with pytest.raises(DirectoryError), Report(path, images):
        raise DirectoryError("no such directory")
    assert path.read_text() == "old"


def test_a_link_in_the_page_s_place_is_replaced_and_its_target_untouched(images: Path) -> None:
    victim, path = images.parent / "victim", images.parent / "report.html"
    victim.write_text("mine")
    path.symlink_to(victim)
    report(images, [], path)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()


def test_others_may_read_the_page_as_far_as_the_umask_lets_them(images: Path) -> None:
    before = os.umask(0o027)
    try:
        page = report(images, [])
    finally:
        os.umask(before)
    assert stat.S_IMODE(page.path.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["report", "report.pdf", ".html", "page.html.gz"])
def test_another_extension_is_refused_before_anything_is_touched(images: Path, name: str) -> None:
    path = images / name
    path.write_text("mine")
    with pytest.raises(OptionError, match=r"\.html"):
        Report(path, images)
    assert path.read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_told_before_the_run(images: Path) -> None:
    with pytest.raises(ResultsFileError, match=r"missing/report\.html"):
        Report(images / "missing" / "report.html", images)
    directory = images / "directory.html"
    directory.mkdir()
    with pytest.raises(ResultsFileError, match=r"directory\.html"):
        Report(directory, images)


# Links.


@pytest.mark.parametrize("place", ["report.html", "images/report.html", "pages/deep/report.html", "linked/report.html"])
def test_images_are_found_from_wherever_the_page_stands(images: Path, place: str) -> None:
    path = images.parent / place
    (images.parent / "pages" / "deep").mkdir(parents=True)
    (images.parent / "linked").symlink_to(images.parent / "pages" / "deep")
    (images / "ab").mkdir()
    (images / "ab" / "a.png").touch()
    page = report(images, [saved("ab/a.png")], path)
    assert [(path.parent / os.fsdecode(image)).exists() for image in page.images] == [True]
    assert page.values("a", "href") == page.values("img", "src")


def test_hostile_names_of_images_and_directories_are_found(images: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(images / "x #?%20:'\"<b>\\") + b"\xff"))
    directory.mkdir()
    names = [paint(directory / name, "red") for name in HOSTILE_NAMES]
    page = report(directory, [saved(name) for name in names], directory / "report.html")
    assert sorted(directory / os.fsdecode(image) for image in page.images) == sorted(directory / name for name in names)


@pytest.mark.parametrize(
    ("url", "links"),
    [
        ("http://h/a.png", ["http://h/a.png"]),
        ("HTTPS://H:443/a b\"'<>.png#f", ["https://h/a%20b%22'%3C%3E.png"]),
        ("https://user:pw@h/a.png", []),
        ("https://h/a.png?signature=1", []),
        ("javascript:alert(1)", []),
        ("data:text/html,x", []),
        ("//h/a.png", []),
    ],
)
def test_a_failed_image_is_linked_where_the_link_is_http_and_tells_no_secret(
    images: Path, url: str, links: list[str]
) -> None:
    assert report(images, [failed(url)]).failed_links == links


@pytest.mark.parametrize("name", ["a.svg", "a.SVG", "a.img"])
def test_what_might_run_as_a_page_is_shown_but_not_linked(images: Path, name: str) -> None:
    page = report(images, [saved(name)])
    assert page.images == [b"images/" + name.encode()]
    assert page.values("a", "href") == []


# Secrets and hostile text.


def test_no_secret_of_a_url_is_told(images: Path) -> None:
    urls = ["https://user:SECRET@h/a", "http://h/?SECRET", "http://h/#SECRET", "x://SECRET@h/?SECRET", "SECRET@h"]
    page = report(images, [saved("a.png"), *map(failed, urls)])
    assert "SECRET" not in page.source
    assert "https://host/a.png?…" in page.values("li", "title")


def test_hostile_text_adds_no_element_and_no_control_character(images: Path) -> None:
    plain = report(images, [saved("a.png")] * len(HOSTILE_NAMES) + [failed("http://h/a")])
    hostile = report(
        images, [*map(saved, HOSTILE_NAMES), *(failed(url, detail=f"{SCRIPT}\x1b[0m\u202e") for url in HOSTILE_URLS)]
    )
    count = [name for name, _ in plain.elements].count
    assert [name for name, _ in hostile.elements].count("script") == count("script") == 1
    assert [name for name, _ in hostile.elements].count("img") == count("img")
    assert not [name for _, attributes in hostile.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", hostile.source)


def test_the_policy_allows_nothing_but_the_page_s_own_style_and_script_and_images(images: Path) -> None:
    page, other = report(images, [saved("a.png")]), report(images, [saved("a.png")])
    (nonce,) = set(page.values("script", "nonce") + page.values("style", "nonce"))
    assert len(nonce) >= 32
    assert nonce not in other.source
    assert page.values("meta", "content")[0] == (
        f"default-src 'none'; img-src 'self' data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_asked_of_anywhere(images: Path) -> None:
    page = report(images, [saved("a.png"), failed("http://elsewhere/a.png")])
    fetched = {tag: page.values(tag, "src") for tag in ("script", "img", "iframe", "link")}
    assert fetched == {"script": [], "img": ["images/a.png"], "iframe": [], "link": []}
    assert page.values("link", "href") == ["data:,"]  # or else a browser asks for /favicon.ico
    assert "url(" not in page.source
    assert "@import" not in page.source


# In a browser.


@in_chromium
def test_a_browser_shows_the_images(images: Path, tmp_path: Path) -> None:
    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    pairs = zip(HOSTILE_NAMES, cycle(colours), strict=False)
    names = [paint(images / name, colour) for name, colour in pairs]
    page = report(images, list(map(saved, names)))
    chromium(page.path, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1200")
    with Image.open(tmp_path / "page.png") as screenshot:
        seen = {colour for _, colour in screenshot.convert("RGB").getcolors(1 << 24) or ()}
    assert set(colours.values()) <= seen


@in_chromium
def test_a_browser_runs_nothing_that_came_from_the_net(images: Path, tmp_path: Path) -> None:
    outcomes = [*map(saved, HOSTILE_NAMES), *(failed(url, detail=SCRIPT) for url in HOSTILE_URLS)]
    page = report(images, outcomes)
    # As if the escaping had failed as well: the policy alone still stops a script, a handler and a frame.
    injected = f"{SCRIPT}<img src=x onerror=document.title='overrun'></header>"
    page.path.write_text(page.source.replace("</header>", injected))
    title = re.search("<title>(.*?)</title>", chromium(page.path, tmp_path))
    assert title is not None
    assert title[1].startswith("images: 20")


@in_chromium
def test_the_search_shows_the_images_whose_name_has_the_words(images: Path, tmp_path: Path) -> None:
    page = report(images, [saved("River.png"), saved("hill.png"), saved("upriver.png")])
    typed = """input.value = " rIVer"; input.dispatchEvent(new Event("input"));</script>"""
    page.path.write_text(page.source.replace("</script>", typed))
    document = chromium(page.path, tmp_path)
    shown = re.findall(r'<li title="[^"]*">.*?class="name">(.*?)<', document, re.DOTALL)
    assert shown == ["upriver.png", "River.png"]
    assert re.search(r"<output[^>]*>2</output>", document)


def test_without_javascript_there_is_no_search_and_all_else(images: Path) -> None:
    page = report(images, [saved("a.png"), failed("http://h/a")])
    assert page.values("label", "hidden") == [""]
    assert page.values("details", "hidden") == page.values("li", "hidden") == []


# The extra, and the command.


def test_a_missing_extra_is_told_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
    code += "from image_loader.cli.report import require_report\nrequire_report()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingPackagesError: report: " in finished.stderr
    assert finished.stderr.endswith(f"; install them: {sys.executable} -m pip install Jinja2\n")


def test_what_renders_the_page_is_imported_only_where_there_is_one() -> None:
    code = "import sys; import image_loader.cli.report; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_writes_the_report(server: Server, loader: Loader) -> None:
    path = loader.home / "report.html"
    urls = [*urls_of(server, 3), *urls_of(server, 2, "status-404")]
    run = loader.run(urls, "--report", str(path))
    page = Page(path)
    assert {os.fsdecode(image) for image in page.images} == {f"images/{file}" for file in run.files}
    assert len(page.failed_links) == 2


def test_a_run_that_a_signal_ends_has_its_report(server: Server, loader: Loader) -> None:
    path = loader.home / "report.html"
    running = loader.start([*urls_of(server, 3), *urls_of(server, 3, "gated/more")], "--report", str(path))
    server.wait_for(lambda: server.at_work == 3)
    running.send(signal.SIGTERM)
    assert running.finish().status == 143
    page = Page(path)
    assert "The run was ended before the list was." in page.text
    assert "interrupted" in page.text
