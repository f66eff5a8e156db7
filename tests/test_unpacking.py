"""Promises of unpacking: the same whatever the pieces are, and padding is passed over behind a member alone."""

from __future__ import annotations

import gzip
import zlib

import pytest

from image_loader.unpacking import DEFLATE, GZIP, Unpacker, pieces

BODY = bytes(range(256)) * 3


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_members_and_what_pads_them_are_unpacked_in_any_pieces(size: int) -> None:
    # Stored as it is, a member holds zeros, of which a piece may consist.
    packed = gzip.compress(BODY, 0) + bytes(9) + gzip.compress(BODY, 0) + bytes(9)
    unpacker = Unpacker(GZIP, limit=100, padding=b"\0")
    parts = [part for at in range(0, len(packed), size) for part in unpacker.unpack(packed[at : at + size])]
    assert b"".join(parts) == 2 * BODY
    assert max(map(len, parts)) <= 100
    assert unpacker.is_at_end


def test_without_padding_what_stands_behind_a_member_has_to_be_one() -> None:
    unpacker = Unpacker(DEFLATE, limit=1000)
    assert b"".join(unpacker.unpack(zlib.compress(BODY))) == BODY
    with pytest.raises(zlib.error):
        list(unpacker.unpack(b"\0\0"))


def test_what_ends_within_a_member_is_not_at_its_end() -> None:
    unpacker = Unpacker(GZIP, limit=1000)
    list(unpacker.unpack(gzip.compress(BODY)[:-1]))
    assert not unpacker.is_at_end


def test_a_chunk_is_fed_in_pieces_that_make_it_up() -> None:
    chunk = bytes(100_000)
    assert b"".join(pieces(chunk)) == chunk
    assert max(map(len, pieces(chunk))) < 10_000
