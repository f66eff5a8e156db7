"""A URL becomes a file name: visible, below the directory, and never longer than the file system takes."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from image_loader.formats import IMAGE_EXTENSIONS, LONGEST_EXTENSION, UNKNOWN_EXTENSION
from image_loader.model import Layout, Name
from image_loader.url import Url

_SEPARATORS = "/\\"
# Control, format (bidirectional and zero-width marks among them), surrogate, line and paragraph separator.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_HARMLESS = re.compile(r"(?! )[\x20-\x2e\x30-\x5b\x5d-\x7e]*[\x21-\x2d\x30-\x5b\x5d-\x7e]")
# Not r"[\s.]+$" to be removed: the search for that takes quadratic time on a long run of dots.
_UP_TO_TRAILING_DOTS = r"(?s).*[^\s.]"
_NAMELESS = "image"
_HASH_DIGITS = (8, 16, 32, 64)
_SPARE_STEM = 40
_DEEPEST = 16  # folders of a path
_LONGEST_FOLDER = 1000  # bytes of all folders of a path; Linux takes 4095 for a whole path
_ENDS_OF_FILES = (*IMAGE_EXTENSIONS, UNKNOWN_EXTENSION)
# Invisible marks outside the format category, which ext4's case-folding directories pass over when they compare.
# Compiled with the first name beyond ASCII.
_IGNORABLE = "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"


def candidates(
    url: Url, layout: Layout, max_bytes: int = 255, refused: str = "", wanted: str | None = None
) -> Iterator[Name]:
    """Yield the names that a URL may have, the preferred one first; the last one collides only on purpose.

    ``wanted`` is a name that the list gives, a path below the directory: it is used instead of the URL's own and of the
    layout. Names without the extension of an image get that of the media type received; those with a hash always do.
    ``max_bytes``, at least 80, holds for the last component with that extension. ``refused`` are characters that the
    file system does not take: a name that has one is passed over, and those with a hash have "_" instead.

    >>> from image_loader.url import parse
    >>> for name in candidates(parse("http://example.com/a/photo.jpg?id=1"), Layout.HOST):
    ...     print(name.path[:40])
    example.com/photo.jpg
    example.com/photo-7cc76741
    example.com/photo-7cc7674112b9121b
    example.com/photo-7cc7674112b9121bc8505c
    example.com/photo-7cc7674112b9121bc8505c
    >>> next(candidates(parse("http://example.com/photo.php"), Layout.FLAT))
    Name(path='photo-35141091', complete=False)
    >>> next(candidates(parse("http://example.com/photo.php"), Layout.FLAT, wanted="shoes/red 1"))
    Name(path='shoes/red 1', complete=False)
    """
    parts = [part for part in wanted.split("/") if part.strip() not in ("", ".", "..")] if wanted else []
    if parts:
        folder, (stem, extension) = _folder(parts[:-1], max_bytes), _stem_and_extension(parts[-1])
        stem = stem if extension else _visible(_plain(parts[-1]))
    else:
        folder = _layout_folder(url, layout, max_bytes)
        stem, extension = _stem_and_extension(_last_segment(url))
    taken = stem
    if refused:
        folder, taken = (re.sub(f"[{re.escape(refused)}]", "_", part) for part in (folder, stem))
    room = max_bytes if extension else max_bytes - LONGEST_EXTENSION
    if (extension or parts) and taken == stem and len((stem + extension).encode()) <= room:
        yield Name(folder + stem + extension, complete=bool(extension))
    digest = url.sha256
    for digits in _HASH_DIGITS:
        room = max_bytes - 1 - digits - LONGEST_EXTENSION
        yield Name(f"{folder}{_cut(taken, room)}-{digest[:digits]}", complete=False)


def spares(url: Url, layout: Layout, extension: str) -> Iterator[str]:
    """Yield names for where those of ``candidates`` cannot be had: short ones that every file system takes.

    >>> from image_loader.url import parse
    >>> next(spares(parse("http://example.com/a:b.png"), Layout.FLAT, ".png"))
    'a_b-2c9d0ae54bf96449.png'
    """
    stem, _ = _stem_and_extension(_last_segment(url))
    folder, stem = (re.sub(r"[^A-Za-z0-9._/-]", "_", part) for part in (_layout_folder(url, layout, 255), stem))
    for digits in _HASH_DIGITS[1:]:
        yield f"{folder}{stem[:_SPARE_STEM]}-{url.sha256[:digits]}{extension}"


def has_hash(url: Url, path: str) -> bool:
    """Whether a file has a name that no other URL has."""
    stem = path.rpartition(".")[0]
    return any(stem.endswith(f"-{url.sha256[:digits]}") for digits in _HASH_DIGITS)


def key(path: str) -> str:
    r"""Return what two paths have in common if some file system may take one for the other.

    Coarser than any one file system: compatibility caseless matching (Unicode, section 3.13), which covers those that
    fold case and those that compare normalization forms.

    >>> key("A\u0308.JPG") == key("\xe4.jpg"), key("a.jpg") == key("b.jpg")
    (True, False)
    """
    if path.isascii():
        return path.lower()
    # Folding can undo a normalization; the second round is what Unicode's definition D146 asks for.
    return _folded(_folded(path))


def _folded(path: str) -> str:
    # upper() first: it joins what casefold() alone keeps apart, such as i and dotless i.
    return re.sub(_IGNORABLE, "", unicodedata.normalize("NFKD", path)).upper().casefold()


def _last_segment(url: Url) -> str:
    return unquote(url.path.partition("?")[0].rpartition("/")[2])


def _segments(url: Url) -> list[str]:
    return url.path.partition("?")[0].split("/")


def _stem_and_extension(name: str) -> tuple[str, str]:
    """Split a name into a safe stem and its image extension, if it has one."""
    name = _plain(name)
    stem, _, extension = name.rpartition(".")
    if "." + extension.lower() in IMAGE_EXTENSIONS:
        return _visible(stem), "." + extension
    return _visible(stem or name), ""


def _plain(text: str) -> str:
    """Drop white space around and dots behind, and replace what is no part of a name."""
    if _HARMLESS.fullmatch(text):
        return text
    match = re.match(_UP_TO_TRAILING_DOTS, text.strip())
    return "".join("_" if _is_unsafe(character) else character for character in match[0]) if match else ""


def _is_unsafe(character: str) -> bool:
    return character in _SEPARATORS or unicodedata.category(character) in _UNSAFE_CATEGORIES


def _visible(stem: str) -> str:
    """Replace leading dots, which would hide the file, and dashes, which would make it an option."""
    rest = stem.lstrip(".-")
    return "_" * (len(stem) - len(rest)) + rest or _NAMELESS


def _layout_folder(url: Url, layout: Layout, max_bytes: int) -> str:
    match layout:
        case Layout.FLAT:
            return ""
        case Layout.HOST:
            return _cut(_visible(_plain(_host(url))), max_bytes) + "/"
        case Layout.HASH:
            digest = url.sha256
            return f"{digest[:2]}/{digest[2:4]}/"
        case Layout.PATH:
            return _folder([_host(url), *map(unquote, filter(None, _segments(url)[:-1]))], max_bytes)


def _host(url: Url) -> str:
    return re.sub(r":([0-9]+)$", r"_\1", url.authority)


def _folder(parts: Iterable[str], max_bytes: int) -> str:
    """Join safe folder names, as many as there is room for. None of them can be the name of a file.

    >>> _folder(["a", "..", "b.jpg", "-c"], 255)
    'a/image/b.jpg_/_c/'
    """
    folder = ""
    for part in itertools.islice(parts, _DEEPEST):
        name = _cut(_visible(_plain(part)), max_bytes - 1).rstrip(" .")
        name += "_" if key(name).endswith(_ENDS_OF_FILES) else ""
        if len((folder + name).encode()) > _LONGEST_FOLDER:
            break
        folder += name + "/"
    return folder


def _cut(text: str, size: int) -> str:
    r"""Return the longest prefix that has at most ``size`` bytes in UTF-8.

    >>> _cut("a\xe4\xe4", 4)
    'a\xe4'
    """
    return text.encode()[:size].decode(errors="ignore")
