"""Content codings: undone piece by piece, refused, and bounded."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest

from asking import BODY, seconds
from image_loader.errors import DownloadError
from image_loader.model import Reason
from image_loader.transport import coding


def _raw(body: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(body) + compressor.flush()


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


PACKED: dict[str, tuple[str, bytes]] = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "x-gzip": ("X-GZip", gzip.compress(BODY)),
    "members": ("gzip", gzip.compress(BODY[:1000]) + gzip.compress(b"") + gzip.compress(BODY[1000:])),
    "zlib": (" Deflate ", zlib.compress(BODY)),
    "raw": ("deflate", _raw(BODY)),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("kind", PACKED)
def test_a_coding_is_undone_however_it_is_cut_into_pieces(kind: str, size: int) -> None:
    name, packed = PACKED[kind]
    pieces = list(coding.decoded(in_pieces(packed, size), name, 50))
    assert b"".join(pieces) == BODY
    assert max(map(len, pieces)) <= 50


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 500])
@pytest.mark.parametrize("kind", PACKED)
def test_a_coding_that_ends_too_early_is_truncated(kind: str, cut: int) -> None:
    name, packed = PACKED[kind]
    with pytest.raises(DownloadError) as caught:
        b"".join(coding.decoded(in_pieces(packed[:-cut], 64), name, 1000))
    assert (caught.value.failure.reason, caught.value.failure.retryable) == (Reason.TRUNCATED, True)


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", _raw)])
def test_what_is_packed_tightly_comes_out_whole_at_every_limit(name: str, pack: Callable[[bytes], bytes]) -> None:
    """The last byte of raw deflate may stand for kilobytes, of which the limit lets only a part through."""
    for size in range(4000, 6000, 7):
        pieces = list(coding.decoded([pack(bytes(size))], name, 4096))
        assert b"".join(pieces) == bytes(size)
        assert max(map(len, pieces)) <= 4096


@pytest.mark.parametrize(
    "name",
    [
        "br",
        "BR",
        "compress",
        "x-compress",
        "zstd",
        "dcb",
        "dcz",
        "exi",
        "pack200-gzip",
        "aes128gcm",
        "gzip, br",
        "none, zstd",
    ],
)
def test_a_coding_that_cannot_be_decoded_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(DownloadError) as caught:
        list(coding.decoded([BODY], name, 1000))
    assert caught.value.failure.reason is Reason.PROTOCOL
    assert name.rpartition(", ")[2].lower() in caught.value.failure.detail
    assert not coding.is_plain(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ",",
        "identity",
        "Identity",
        "UTF-8",
        "none",
        "aws-chunked",
        "binary",
        "utf-8, identity",
        "8bit, , x",
        "chunked",
    ],
)
def test_what_names_no_coding_is_passed_over(name: str) -> None:
    assert b"".join(coding.decoded([BODY], name, 1000)) == BODY
    assert coding.is_plain(name)


@pytest.mark.parametrize(
    "name",
    ["utf-8, gzip", "GZIP, none", "aws-chunked,gzip", "gzip;q=1", '"gzip"', " ,gzip, ", "identity, x-gzip"],
)
def test_a_coding_among_words_that_name_none_is_undone(name: str) -> None:
    assert b"".join(coding.decoded([gzip.compress(BODY)], name, 1000)) == BODY
    assert not coding.is_plain(name)


@pytest.mark.parametrize("size", [1, 100_000])
def test_two_codings_are_undone_the_last_one_first(size: int) -> None:
    packed = gzip.compress(zlib.compress(BODY))
    assert b"".join(coding.decoded(in_pieces(packed, size), "deflate, gzip", 50)) == BODY
    with pytest.raises(DownloadError):
        list(coding.decoded([packed], "gzip, deflate", 50))


def test_many_codings_are_refused() -> None:
    with pytest.raises(DownloadError) as caught:
        list(coding.decoded([BODY], ", ".join(["gzip"] * 3), 1000))
    assert caught.value.failure.reason is Reason.PROTOCOL


def test_time_is_looked_at_however_much_a_few_bytes_make() -> None:
    """One chunk of the wire, and no byte of content."""
    packed = gzip.compress(gzip.compress(b"") * 200_000)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > 10:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        list(coding.decoded([packed], "gzip, gzip", 65536, check))


@pytest.mark.parametrize("packed", [BODY, gzip.compress(BODY)[:-8] + bytes(8), gzip.compress(BODY) + b"behind"])
def test_a_coding_that_is_damaged_is_refused(packed: bytes) -> None:
    with pytest.raises(DownloadError) as caught:
        list(coding.decoded([packed], "gzip", 1000))
    assert caught.value.failure.reason is Reason.DAMAGED


def test_a_flood_of_empty_members_costs_no_more_than_its_length() -> None:
    flood = gzip.compress(b"") * 400_000
    taken = seconds(lambda: list(coding.decoded([flood], "gzip", 65536)))
    assert taken < 10, "with all that follows copied for each member, it takes 50 s"


def test_a_bomb_stays_small_in_memory() -> None:
    packed = gzip.compress(bytes(30_000_000), 9)
    tracemalloc.start()
    try:
        assert sum(map(len, coding.decoded(in_pieces(packed, 65536), "gzip", 65536))) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
