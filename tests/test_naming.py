"""Names: safe, visible, short enough, and apart wherever some file system would take two for one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_loader.formats import IMAGE_EXTENSIONS, LONGEST_EXTENSION
from image_loader.lists.naming import candidates, has_hash, key, spares
from image_loader.model import Layout, Name
from image_loader.url import Url, parse

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
SEGMENTS = st.one_of(
    st.text().map(lambda text: quote(text, safe="", errors="replace")),
    st.binary().map(quote),
    st.text(alphabet="%2eEfF/\\.-_ ~:0a\u202e\u0301"),
    st.builds(str.__add__, st.text(alphabet="a.- %"), st.sampled_from(sorted(IMAGE_EXTENSIONS))),
    st.integers(min_value=1, max_value=400).map(lambda size: quote("ä" * size + ".jpg")),
)
HOSTS = ["example.com", "example.com:8080", "-rf", "[::1]:81", "ü.example", "~" * 63 + "." + "b" * 63]
URLS = st.builds("http://{}/dir/{}".format, st.sampled_from(HOSTS), SEGMENTS).map(parse)


def names(address: str, layout: Layout = Layout.FLAT) -> list[Name]:
    return list(candidates(parse(address), layout))


def first(address: str, layout: Layout = Layout.FLAT) -> str:
    return names(address, layout)[0].path


def stem(address: str) -> str:
    """Return the name of a URL that has no image extension, without its hash."""
    name = names(address)[0]
    assert not name.complete
    return name.path.rpartition("-")[0]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/photo.jpg", "photo.jpg"),
        ("a/photo.JPG", "photo.JPG"),
        ("photo.jpg?size=large", "photo.jpg"),
        ("a%20b.png", "a b.png"),
        ("caf%C3%A9.webp", "café.webp"),
        ("café.webp", "café.webp"),
        ("12:30.gif", "12:30.gif"),
        ("a+b,c'd.jpg", "a+b,c'd.jpg"),
        ("archive.tar.jpg", "archive.tar.jpg"),
        ("%20%20photo.jpg%20%0A", "photo.jpg"),
        ("photo.jpg...", "photo.jpg"),
        ("photo.jpg.%20.", "photo.jpg"),
    ],
)
def test_a_segment_that_ends_in_an_image_extension_is_the_name(path: str, name: str) -> None:
    assert names(f"http://h/{path}")[0] == Name(name, complete=True)


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("..%2f..%2fetc%2fx.jpg", "___.._etc_x.jpg"),
        ("%2e%2e%2fx.jpg", "___x.jpg"),
        ("..%5Cx.jpg", "___x.jpg"),
        ("%252fx.jpg", "%2fx.jpg"),
        ("a%00b.jpg", "a_b.jpg"),
        ("a%1B%5B31mb.jpg", "a_[31mb.jpg"),
        ("a%E2%80%AEgpj.jpg", "a_gpj.jpg"),
        ("a%E2%80%8Bb.jpg", "a_b.jpg"),
        ("a%E2%80%A8b.jpg", "a_b.jpg"),
        ("a%C2%85b.jpg", "a_b.jpg"),
        ("a%ED%A0%80b.jpg", "a\ufffd\ufffd\ufffdb.jpg"),
        ("%FFa.jpg", "\ufffda.jpg"),
        (".hidden.jpg", "_hidden.jpg"),
        ("..hidden.jpg", "__hidden.jpg"),
        ("-rf.jpg", "_rf.jpg"),
        (".jpg", "image.jpg"),
        ("%20.jpg", "image.jpg"),
    ],
)
def test_what_is_unsafe_in_a_name_is_replaced(segment: str, name: str) -> None:
    assert first(f"http://h/{segment}") == name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photo.php", "photo"),
        ("photo.php?id=7", "photo"),
        ("photo.jpg.php", "photo.jpg"),
        ("photo", "photo"),
        ("", "image"),
        ("?id=7", "image"),
        ("dir/", "image"),
        (".", "image"),
        ("..", "image"),
        ("%2e%2e", "image"),
        ("%20", "image"),
        (".hidden", "_hidden"),
        ("-rf", "_rf"),
        ("index.sqlite3", "index"),
        ("photo.jpg;v=1", "photo"),
    ],
)
def test_a_name_without_an_image_extension_is_hashed_and_incomplete(path: str, expected: str) -> None:
    assert stem(f"http://h/{path}") == expected


def test_hashed_names_follow_with_eight_to_sixty_four_digits_of_the_url() -> None:
    sha256 = parse("http://h/photo.JPG").sha256
    hashed = [Name(f"photo-{sha256[:digits]}", complete=False) for digits in (8, 16, 32, 64)]
    assert names("http://h/photo.JPG") == [Name("photo.JPG", complete=True), *hashed]


def test_incomplete_names_have_the_same_digits() -> None:
    sha256 = parse("http://h/photo.php").sha256
    assert names("http://h/photo.php") == [
        Name(f"photo-{sha256[:digits]}", complete=False) for digits in (8, 16, 32, 64)
    ]


def test_the_last_candidates_of_two_urls_differ_whatever_else_they_share() -> None:
    addresses = [f"http://host{number}/a/photo.jpg?{query}" for number, query in product(range(20), range(50))]
    assert len({names(address)[-1].path for address in addresses}) == len(addresses)


def test_layout_host_puts_each_host_and_port_into_a_folder() -> None:
    assert first("http://Example.com/a/b.jpg", Layout.HOST) == "example.com/b.jpg"
    assert first("http://example.com:8080/b.jpg", Layout.HOST) == "example.com_8080/b.jpg"
    assert first("https://[::1]:8443/b.jpg", Layout.HOST) == "[::1]_8443/b.jpg"


@pytest.mark.parametrize(
    ("host", "folder"),
    [
        ("example.com.", "example.com"),
        ("-rf", "_rf"),
        ("é.example", "xn--9ca.example"),
    ],
)
def test_layout_host_makes_a_hostile_host_safe(host: str, folder: str) -> None:
    assert first(f"http://{host}/b.jpg", Layout.HOST) == f"{folder}/b.jpg"


def test_layout_hash_spreads_the_names_over_two_levels() -> None:
    sha256 = parse("http://h/b.jpg").sha256
    assert first("http://h/b.jpg", Layout.HASH) == f"{sha256[:2]}/{sha256[2:4]}/b.jpg"


@pytest.mark.parametrize("long", ["x" * 300, "ä" * 200, "\U0001f600" * 100])
def test_a_name_that_is_too_long_is_cut_between_characters_and_hashed(long: str) -> None:
    found = first(f"http://h/{quote(long)}.jpeg")
    cut, _, rest = found.rpartition("-")
    assert long.startswith(cut)
    assert rest == parse(f"http://h/{quote(long)}.jpeg").sha256[:8]
    assert 247 <= len(found.encode()) <= 250


def test_a_name_of_just_the_greatest_length_stays() -> None:
    longest = "x" * 251 + ".jpg"
    assert first(f"http://h/{longest}") == longest
    assert first(f"http://h/x{longest}") != "x" + longest


def with_longest_extension(name: Name) -> str:
    return name.file("." + "x" * (LONGEST_EXTENSION - 1))


@given(url=URLS, layout=st.sampled_from(Layout), max_bytes=st.sampled_from([80, 143, 255]))
@settings(max_examples=200)
def test_every_name_is_safe_visible_and_short_enough(url: Url, layout: Layout, max_bytes: int) -> None:
    for name in candidates(url, layout, max_bytes):
        *folders, last = with_longest_extension(name).split("/")
        depth: dict[Layout, Sequence[int]] = {
            Layout.FLAT: [0],
            Layout.HOST: [1],
            Layout.HASH: [2],
            Layout.PATH: range(1, 17),
        }
        assert len(folders) in depth[layout]
        for part in (*folders, last):
            assert 0 < len(part.encode()) <= max_bytes
            assert part[0] not in ".-"
            assert "\\" not in part
            assert not part[0].isspace()
            assert not {unicodedata.category(character) for character in part} & UNSAFE
        assert last[-1] != "."


WANTED = st.lists(
    st.one_of(
        st.text(max_size=5), st.sampled_from(["..", ".", "/", "a.jpg", "-", " ", "\udc80", "ä" * 200, "x/" * 50])
    ),
    min_size=1,
).map("/".join)


@pytest.mark.parametrize("max_bytes", [80, 143, 255])
def test_folders_and_names_have_all_the_room_that_there_is(max_bytes: int) -> None:
    room = max_bytes - LONGEST_EXTENSION
    for length, has_room in ((room, True), (room + 1, False)):
        wanted = f"{'x' * 300}/{'y' * length}"
        folder, name = next(candidates(parse("http://h/a"), Layout.FLAT, max_bytes, wanted=wanted)).path.split("/")
        assert folder == "x" * (max_bytes - 1)
        assert (name == "y" * length) is has_room


@given(wanted=WANTED, layout=st.sampled_from(Layout), max_bytes=st.sampled_from([80, 143, 255]))
@settings(max_examples=300)
def test_every_name_from_a_list_is_safe_visible_and_short_enough(wanted: str, layout: Layout, max_bytes: int) -> None:
    for name in candidates(parse("http://h/dir/photo.jpg"), layout, max_bytes, wanted=wanted):
        *folders, last = with_longest_extension(name).split("/")
        assert len(folders) <= 16
        assert len(name.path.encode()) <= 1000 + 1 + 255
        for part in (*folders, last):
            assert 0 < len(part.encode()) <= max_bytes
            assert part[0] not in ".-"
            assert part[-1] not in ". "
            assert "\\" not in part
            assert not part[0].isspace()
            assert not {unicodedata.category(character) for character in part} & UNSAFE
        assert not any(key(folder).endswith((*IMAGE_EXTENSIONS, ".img")) for folder in folders)


@given(wanted=WANTED, extension=st.sampled_from([".png", ".jpeg"]))
def test_a_name_that_is_safe_is_taken_from_a_list_as_it_stands_there(wanted: str, extension: str) -> None:
    url = parse("http://h/dir/photo.jpg")
    for name in candidates(url, Layout.FLAT, wanted=wanted):
        assert next(candidates(url, Layout.FLAT, wanted=name.path)) == name
        file = name.file(extension)
        assert next(candidates(url, Layout.FLAT, wanted=file)) == Name(file, complete=True)


@pytest.mark.parametrize(
    ("wanted", "name", "complete"),
    [
        ("1234", "1234", False),
        ("1234.jpg", "1234.jpg", True),
        ("shoes/red 1.JPEG", "shoes/red 1.JPEG", True),
        ("1.5", "1.5", False),
        ("100%25.png", "100%25.png", True),
        ("/srv/../etc//./a.jpg", "srv/etc/a.jpg", True),
        ("../../a", "a", False),
        ("shoes/", "shoes", False),
        ("a\\b\nc", "a_b_c", False),
        (".hidden/-rf/.a.jpg", "_hidden/_rf/_a.jpg", True),
        (".image_loader/index.sqlite3", "_image_loader/index.sqlite3", False),
        ("a.jpg/b.jpg/c.jpg", "a.jpg_/b.jpg_/c.jpg", True),
        ("A.\uff2a\uff30\uff27 ./b", "A.\uff2a\uff30\uff27_/b", False),
        ("a.img/b", "a.img_/b", False),
        ("a. /b", "a/b", False),
        ("x" * 250, "x" * 250, False),
        ("x" * 251 + ".jpg", "x" * 251 + ".jpg", True),
    ],
)
def test_a_name_from_the_list_goes_before_the_layout(wanted: str, name: str, *, complete: bool) -> None:
    for layout in Layout:
        found = list(candidates(parse("http://h/dir/photo.jpg"), layout, wanted=wanted))
        assert found[0] == Name(name, complete)
        assert {each.path.rpartition("/")[0] for each in found} == {name.rpartition("/")[0]}
        assert len(found) == 5
        assert not any(each.complete for each in found[1:])


@pytest.mark.parametrize("wanted", [None, "", "/", "..", " ./.. "])
def test_without_a_name_in_the_list_it_is_the_url_s(wanted: str | None) -> None:
    url = parse("http://h/dir/photo.jpg")
    assert list(candidates(url, Layout.HOST, wanted=wanted)) == list(candidates(url, Layout.HOST))


@pytest.mark.parametrize("wanted", ["x" * 251, "x" * 252 + ".jpg", "ä" * 127])
def test_a_name_from_the_list_that_is_too_long_is_cut_and_hashed(wanted: str) -> None:
    url = parse("http://h/photo.jpg")
    name = next(candidates(url, Layout.FLAT, wanted=wanted))
    cut, _, digits = name.path.rpartition("-")
    assert wanted.startswith(cut)
    assert (digits, name.complete) == (url.sha256[:8], False)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/photo.jpg", "h/photo.jpg"),
        ("http://h:81/a/b%20c/photo.jpg?x=/y/", "h_81/a/b c/photo.jpg"),
        ("http://h/a//b/photo.jpg", "h/a/b/photo.jpg"),
        ("http://h/a.jpg/b.png/c.jpg", "h/a.jpg_/b.png_/c.jpg"),
        ("http://h/..%2f..%2fetc/-rf/.ssh/a.jpg", "h/___.._etc/_rf/_ssh/a.jpg"),
        ("http://h/%252e%252e/a.jpg", "h/%2e%2e/a.jpg"),
        ("http://h/" + "a/" * 100 + "b.jpg", "h/" + "a/" * 15 + "b.jpg"),
        ("http://h/" + ("a" * 240 + "/") * 10 + "b.jpg", "h/" + ("a" * 240 + "/") * 4 + "b.jpg"),
    ],
)
def test_layout_path_keeps_the_folders_of_the_url(url: str, name: str) -> None:
    assert first(url, Layout.PATH) == name


@pytest.mark.parametrize("length", range(248, 256))
def test_no_folder_is_too_long_for_the_end_that_keeps_it_from_being_a_file(length: int) -> None:
    folder = first(f"http://h/{'a' * length}.jpgxxxx/b.jpg", Layout.PATH).split("/")[1]
    assert len(folder) <= 255
    assert not folder.endswith(".jpg")


def test_what_is_cut_is_cut_no_shorter_than_it_must_be() -> None:
    assert len(first(f"http://h/{'a' * 300}/b.jpg", Layout.PATH).split("/")[1]) == 254
    assert {len(with_longest_extension(name)) for name in names(f"http://h/{'a' * 300}.jpg")} == {255}


def test_folders_end_before_the_first_that_makes_them_too_long() -> None:
    long = "x" * 250
    assert first(f"http://h/{'/'.join([long] * 6)}/short/b.jpg", Layout.PATH) == f"h/{'/'.join([long] * 3)}/b.jpg"


@pytest.mark.parametrize("character", '"*:<>?|')
def test_a_name_with_a_character_that_the_file_system_refuses_is_passed_over(character: str) -> None:
    url = parse(f"http://h/a{quote(character)}b.jpg")
    assert next(candidates(url, Layout.FLAT)).path == f"a{character}b.jpg"
    assert next(candidates(url, Layout.FLAT, refused=character)).path == f"a_b-{url.sha256[:8]}"


def test_layout_path_hashes_a_name_without_extension(tmp_path: Path) -> None:
    url = parse("http://h/a/photo.php?id=1")
    assert first(url.text, Layout.PATH) == f"h/a/photo-{url.sha256[:8]}"


@given(url=URLS, layout=st.sampled_from(Layout))
@settings(max_examples=200)
def test_a_url_has_the_same_names_each_time_and_all_but_the_first_are_hashed(url: Url, layout: Layout) -> None:
    found = list(candidates(url, layout))
    assert found == list(candidates(url, layout))
    assert all(url.sha256[:8] in name.path.rpartition("/")[2] for name in found[-4:])
    assert len(found) - 4 in {0, 1}
    assert not any(name.complete for name in found[-4:])


def test_every_name_of_a_hostile_list_can_be_made_in_a_real_directory(tmp_path: Path) -> None:
    hostile = [
        "..",
        "%2e%2e%2fx.jpg",
        "%00.jpg",
        "%1b.png",
        "-rf",
        quote("é" * 128) + ".jpg",
        "x" * 5000,
        "%FF%FE",
        "a%0Ab.gif",
    ]
    for segment in hostile:
        for name in names(f"http://h/{segment}"):
            file = tmp_path / name.file(".jpeg")
            file.touch(exist_ok=False)
            assert file.resolve().parent == tmp_path.resolve()
    assert not any(file.name.startswith(".") for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Photo.JPG", "photo.jpg"),
        ("é.jpg", "e\u0301.jpg"),
        ("É.jpg", "e\u0301.jpg"),
        ("straße.jpg", "STRASSE.jpg"),
        ("ς.jpg", "Σ.jpg"),
        ("\u0131.jpg", "I.jpg"),
        ("\u212a.jpg", "k.jpg"),
        ("\ufb01.jpg", "fi.jpg"),
        ("❤\ufe0f.jpg", "❤.jpg"),
        ("Example.com/ä.jpg", "example.com/Ä.jpg"),
    ],
)
def test_paths_that_some_file_system_takes_for_one_have_one_key(one: str, other: str) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a.jpg", "b.jpg"), ("e.jpg", "é.jpg"), ("a.jpg", "a.png"), ("a/b.jpg", "b.jpg")]
)
def test_other_paths_keep_their_own_key(one: str, other: str) -> None:
    assert key(one) != key(other)


def spellings(path: str) -> Iterator[str]:
    """Yield what a file system might take for the path: other forms, other case."""
    decomposed = unicodedata.normalize("NFD", path)
    yield from (unicodedata.normalize("NFC", path), decomposed, unicodedata.normalize("NFKC", path))
    yield from (decomposed.lower(), decomposed.casefold(), key(path))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200)
def test_case_and_unicode_form_never_change_a_key(path: str) -> None:
    assert {key(spelling) for spelling in spellings(path)} == {key(path)}


def test_image_extensions_are_lower_case_ascii_and_short() -> None:
    assert all(
        extension[0] == "." and extension[1:].isalnum() and extension.isascii() for extension in IMAGE_EXTENSIONS
    )
    assert all(extension == extension.lower() for extension in IMAGE_EXTENSIONS)
    assert LONGEST_EXTENSION == 5


@pytest.mark.parametrize("layout", Layout)
def test_characters_that_a_file_system_refuses_are_replaced_behind_the_plain_name(layout: Layout) -> None:
    url = parse("http://[::1]:80/a%3Fb:c.png")
    names = list(candidates(url, layout, refused='"*:<>?|'))
    assert not any(set('"*:<>?|') & set(name.path) for name in names)
    assert not any(name.complete for name in names)
    assert names[0].path.rpartition("/")[2] == f"a_b_c-{url.sha256[:8]}"
    assert next(candidates(parse("http://h/a.png"), layout, refused=":")).complete


def test_characters_that_a_file_system_refuses_are_replaced_in_names_of_the_list() -> None:
    url = parse("http://h/photo.png")
    names = list(candidates(url, Layout.FLAT, refused=":?", wanted="a:b/c?d"))
    assert names[0].path == f"a_b/c_d-{url.sha256[:8]}"
    assert next(candidates(url, Layout.FLAT, refused=":?", wanted="a:b/c d")) == Name("a_b/c d", complete=False)


@given(st.text(max_size=300), st.sampled_from(Layout))
def test_a_spare_name_is_one_that_every_file_system_takes(text: str, layout: Layout) -> None:
    url = parse("http://h:81/" + quote(text))
    names = list(spares(url, layout, ".png"))
    assert len(set(names)) == 3
    for name in names:
        assert re.fullmatch(r"([A-Za-z0-9_.-]+/){0,16}[A-Za-z0-9_][A-Za-z0-9_.-]*\.png", name)
        assert len(name.rpartition("/")[2]) < 120
        assert has_hash(url, name)


def test_a_name_has_the_hash_of_its_own_url_alone() -> None:
    url, other = parse("http://h/a.png"), parse("http://h/b.png")
    names = [name.file(".png") for name in candidates(url, Layout.FLAT)]
    assert [has_hash(url, name) for name in names] == [False, True, True, True, True]
    assert not any(has_hash(other, name) for name in names)
