"""What the command leaves on the disk, and under which names."""

from __future__ import annotations

import gzip
import random
import re
import stat
from collections.abc import Callable

import pytest

from conftest import Loader, leftovers, urls_of
from server import Server

# What is saved ----------------------------------------------------------------------------------------------------


def test_a_saved_file_has_the_time_of_its_last_modified(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png")])
    assert (loader.directory / "a.png").stat().st_mtime == 1_600_000_000


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_mode_of_a_file_follows_the_umask(server: Server, loader: Loader, umask: int, mode: int) -> None:
    loader.run([server.url("/a.png")], umask=umask)
    assert stat.S_IMODE((loader.directory / "a.png").stat().st_mode) == mode


def test_what_others_keep_in_the_directory_stays(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "notes.txt").write_text("mine")
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")]).files == {"a.png", "notes.txt"}


def test_nothing_but_the_images_and_the_hidden_folder_is_left(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 5))
    assert {path.name for path in loader.directory.iterdir()} == {".image_loader", *run.files}
    assert leftovers(loader.directory) == []


def test_the_extension_is_that_of_the_type(server: Server, loader: Loader) -> None:
    targets = ["/photo.php", "/photo.php?id=2", "/noname/", "/", "/thumb", "/image.svgz.exe"]
    run = loader.run([server.url(target) for target in targets])
    assert run.counts == (6, 0, 0, 0)
    assert all(name.endswith(".png") for name in run.files)


@pytest.mark.parametrize("layout", ["flat", "host", "hash", "path"])
def test_a_layout_gives_each_image_its_place(server: Server, loader: Loader, layout: str) -> None:
    host = rf"127\.0\.0\.1_{server.port}/"
    place = {"flat": "", "host": host, "hash": "[0-9a-f]{2}/[0-9a-f]{2}/", "path": f"{host}image/"}[layout]
    for counts in ((5, 0, 0, 0), (0, 5, 0, 0)):
        run = loader.run(urls_of(server, 5), "--layout", layout)
        assert run.counts == counts
        assert all(re.fullmatch(place + r"000\d\.png", file) for file in run.files), run.files


def test_names_are_the_same_in_every_locale(server: Server, loader: Loader) -> None:
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    urls = [server.url(target) for target in ("/\u0142\xe4.png", "/\u0142/\u732b.png")]
    for environment, saved in ((old, 2), ({}, 0), (old, 0)):
        run = loader.run(urls, "-vv", "--report", "page.html", environment=environment)
        assert run.counts == (saved, 2 - saved, 0, 0)
        assert run.files == {"\u0142\xe4.png", "\u732b.png"}
        assert "%C5%82%C3%A4.png" in (loader.home / "page.html").read_text()


def test_verify_refuses_what_is_no_whole_image(server: Server, loader: Loader) -> None:
    pytest.importorskip("PIL", reason="takes the extra `verify`")
    server.headers["/odd.png"] = {"Content-Type": "image/jpeg"}
    good, odd, damaged = server.url("/a.png"), server.url("/odd.png"), server.url("/damaged/b.png")
    run = loader.run([good, odd, damaged], "--verify")
    assert [run.row(url)["reason"] for url in (good, odd, damaged)] == [None, None, "damaged"]


def test_sniff_saves_what_has_no_type_of_its_own(server: Server, loader: Loader) -> None:
    urls = [server.url(f"/{kind}/image") for kind in ("wrong-type-octets", "wrong-type-none", "wrong-type-html")]
    run = loader.run(urls)
    assert [run.row(url)["reason"] for url in urls] == ["not-an-image"] * 3
    assert ["--sniff" in run.row(url)["detail"] for url in urls] == [True, True, False]
    run = loader.run(urls, "--sniff")
    assert [run.row(url)["media_type"] for url in urls] == ["image/png", "image/png", None]
    assert [run.row(url)["file"][-4:] for url in urls[:2]] == [".png"] * 2
    assert [run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls[:2]] == [True] * 2


def test_verify_keeps_the_old_image_from_a_damaged_one(server: Server, loader: Loader) -> None:
    pytest.importorskip("PIL", reason="takes the extra `verify`")
    url = server.url("/damaged/a.png")
    server.healthy = True
    loader.run([url], "--verify")
    server.healthy, server.versions["/damaged/a.png"] = False, 1
    run = loader.run([url], "--verify")
    assert run.row(url)["reason"] in ("damaged", "not-an-image")
    server.versions["/damaged/a.png"] = 0
    assert (loader.directory / "a.png").read_bytes() == server.image("/damaged/a.png")
    assert leftovers(loader.directory) == []


# Names ------------------------------------------------------------------------------------------------------------


def test_the_same_name_from_many_hosts_gives_as_many_files(new_server: Callable[..., Server], loader: Loader) -> None:
    servers = [new_server(name=str(number)) for number in range(10)]
    urls = [server.url(f"/{folder}/photo.png") for server in servers for folder in range(10)]
    first = loader.run(urls)
    assert (first.counts, len(first.files)) == ((100, 0, 0, 0), 100)
    random.Random(1).shuffle(urls)
    second = loader.run(urls)
    assert second.counts == (0, 100, 0, 0)
    for server in servers:
        for folder in range(10):
            assert second.content(server.url(f"/{folder}/photo.png")) == server.image(f"/{folder}/photo.png")


def test_names_that_a_file_system_may_take_for_one_give_two_files(server: Server, loader: Loader) -> None:
    names = [
        "a.png",
        "A.png",
        "a.PNG",
        "caf%C3%A9.png",
        "cafe%CC%81.png",
        "x.png?1",
        "x.png?2",
        "stra%C3%9Fe.png",
        "STRASSE.png",
    ]
    run = loader.run([server.url(f"/{name}") for name in names])
    assert run.counts == (len(names), 0, 0, 0)
    assert len({name.casefold() for name in run.files}) == len(names)
    assert all(run.content(server.url(f"/{name}")) == server.image(f"/{name}") for name in names)


HOSTILE = [
    "../a.png",
    "..%2fa.png",
    "%2e%2e%2fa.png",
    "%252e%252e%252fa.png",
    "..%5ca.png",
    "a%00.png",
    "%1b%5b31m.png",
    "%e2%80%aegnp.exe.png",
    "x" * 300 + ".png",
    "%e2%82%ac" * 85 + ".png",
    "%ff%fe.png",
    ".",
    "..",
    "%2e",
    "-rf.png",
    ".hidden.png",
    ".image_loader",
    ".image_loader%2findex.sqlite3",
    "index.sqlite3",
    "a%0ab.png",
    "%20.png",
    "con.png",
    "a.png/",
    "%2fetc%2fpasswd.png",
    "a:b.png",
    "a*b%3f.png",
    "%7f.png",
    "a%e2%80%a8b.png",
]


@pytest.mark.parametrize("layout", ["flat", "hash"])
def test_a_hostile_name_gives_a_safe_visible_file_inside_the_directory(
    server: Server, loader: Loader, layout: str
) -> None:
    urls = [server.url(f"/{number}/{name}") for number, name in enumerate(HOSTILE)]
    run = loader.run(urls, "--layout", layout, "-vv")
    assert run.counts == (len(urls), 0, 0, 0)
    assert len(run.files) == len(urls)
    for file in run.files:
        name = file.rpartition("/")[2]
        assert name.isprintable(), file
        assert name[0] not in ".- "
        assert len(name.encode()) <= 255
        assert "\\" not in name
    assert {path.name for path in loader.home.iterdir()} == {"images", "rows.jsonl", "urls-1.txt"}
    assert "\x1b" not in run.stderr
    assert "\u202e" not in run.stderr


# Tables -------------------------------------------------------------------------------------------------------------


def feed(server: Server, rows: int, delimiter: str = ";") -> str:
    """Return a shop's table: ids, titles with line ends in them, and the URLs of images without extension."""
    lines = (
        ["id", "title", "image link"],
        *([str(number), f'"Shoe,\r\nno. {number}"', server.url(f"/show?{number}")] for number in range(rows)),
    )
    return "\ufeff" + "".join(delimiter.join(cells) + "\r\n" for cells in lines)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("source", ["file", "gzip", "pipe"])
def test_a_table_becomes_files_named_by_a_column(server: Server, loader: Loader, source: str, delimiter: str) -> None:
    content = feed(server, 3, delimiter).encode()
    path = loader.home / "feed"
    path.write_bytes(gzip.compress(content) if source == "gzip" else content)
    columns = ("--url-column", "image link", "--name-column", "id")
    for counts in ((3, 0, 0, 0), (0, 3, 0, 0)):
        run = loader.run(content if source == "pipe" else path, *columns)
        assert (run.status, run.counts) == (0, counts)
        assert run.files == {"0.png", "1.png", "2.png"}
        assert [run.row(server.url(f"/show?{number}"))["file"] for number in range(3)] == ["0.png", "1.png", "2.png"]


def test_two_rows_with_one_name_are_two_files_and_a_name_is_a_path(server: Server, loader: Loader) -> None:
    names = ["a/b.jpg", "a/b.jpg", "a/b", "../c", "", "A/B.JPG"]
    urls = [server.url(f"/show/{number}.png") for number in range(len(names))]
    path = loader.home / "table.csv"
    path.write_text("".join(f"{name},{url}\n" for name, url in zip(names, urls, strict=True)))
    run = loader.run(path, "--url-column", "2", "--name-column", "1", "--layout", "host")
    assert run.counts == (6, 0, 0, 0)
    files = [run.row(url)["file"] for url in urls]
    assert len(set(files)) == 6
    assert (files[0], files[3], files[4]) == ("a/b.jpg", "c.png", f"127.0.0.1_{server.port}/4.png")
    for file in (files[1], files[2], files[5]):
        assert re.fullmatch(r"[aA]/[bB]-[0-9a-f]{8}\.png", file)
    assert loader.run(path, "--url-column", "2", "--name-column", "1").counts == (0, 6, 0, 0)


def test_a_table_without_the_column_ends_the_run_before_anything_is_made(server: Server, loader: Loader) -> None:
    path = loader.home / "feed.csv"
    path.write_text(feed(server, 3))
    run = loader.run(path, "--url-column", "picture")
    assert run.status == 2
    assert "no column 'picture' among the 3 of the first row: id, title, image link;" in run.stderr
    plain = loader.run(path)
    assert plain.status == 2
    assert (
        "a table; name the column of URLs, such as: loader --url-column 'image link' URLFILE DIRECTORY" in plain.stderr
    )
    assert not loader.directory.exists()


def test_a_row_without_a_url_fails_with_its_line(server: Server, loader: Loader) -> None:
    path = loader.home / "table.tsv"
    path.write_text(f"id\turl\n1\n2\t{server.url('/a.png')}\n3\t\n")
    run = loader.run(path, "--url-column", "url")
    assert (run.status, run.counts) == (1, (1, 0, 0, 2))
    details = [row["detail"] for row in run.rows if row["reason"] == "bad-url"]
    assert details == ["no column url in this row (line 2)", "no URL in column url (line 4)"]


def test_a_file_that_came_under_a_name_while_its_image_could_not_be_had_stays(server: Server, loader: Loader) -> None:
    path = loader.home / "table.csv"
    failing, other = server.url("/status-404/show?1"), server.url("/show?2")
    path.write_text(f"red 1,{failing}\nblue,{other}\n")
    columns = ("--url-column", "2", "--name-column", "1")
    assert loader.run(path, *columns).counts == (1, 0, 0, 1)
    server.healthy = True
    (loader.directory / "red 1.png").write_bytes(b"mine")
    run = loader.run(path, *columns)
    assert run.counts == (1, 1, 0, 0)
    assert (loader.directory / "red 1.png").read_bytes() == b"mine"
    assert run.content(failing) == server.image(failing.removeprefix(server.origin))


def test_a_name_from_the_list_never_takes_the_place_of_another_s_file(server: Server, loader: Loader) -> None:
    path = loader.home / "table.csv"
    path.write_text(f"1,{server.url('/show?1')}\n2,{server.url('/show?2')}\n")
    loader.run([server.url("/a.png")])
    (loader.directory / "1.png").write_bytes(b"mine")
    run = loader.run(path, "--url-column", "2", "--name-column", "1")
    assert run.counts == (2, 0, 0, 0)
    assert (loader.directory / "1.png").read_bytes() == b"mine"
    assert re.fullmatch(r"1-[0-9a-f]{16}\.png|1-[0-9a-f]{8}\.png", run.row(server.url("/show?1"))["file"])
    assert run.row(server.url("/show?2"))["file"] == "2.png"
    assert loader.run(path, "--url-column", "2", "--name-column", "1").counts == (0, 2, 0, 0)
