"""What HTTP lets a client conclude from response headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_loader import freshness
from image_loader.model import Image, Lifetime, NotModified, Validators

NOW = 1_700_000_000.0
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
HOUR_LATER = "Tue, 14 Nov 2023 23:13:20 GMT"
HOUR_BEFORE = "Tue, 14 Nov 2023 21:13:20 GMT"
IMAGE = Image("a.jpg", 3, 5, 6, "image/jpeg", "00", Validators('"1"', DATE), Lifetime(90.0), NOW - 100, NOW - 100)
HEADER_TEXT = st.text(st.characters(max_codepoint=255), max_size=80)


def lifetime(**fields: str) -> float | None:
    """Return how long a response received at NOW without delay is fresh; None where it never is."""
    return lasts(freshness.lifetime({name.replace("_", "-"): value for name, value in fields.items()}, NOW, NOW))


def lasts(found: Lifetime) -> float | None:
    """Return for how long it lasts from NOW on; None where it is over before that."""
    seconds = freshness.end(found, NOW) - NOW
    return None if seconds < 0 else seconds


def test_the_date_of_these_tests_is_now() -> None:
    assert freshness.http_date(NOW) == DATE


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("max-age=60", 60),
        ("Public , MAX-AGE=60", 60),
        ('max-age="60"', 60),
        ("max-age=60, immutable", 60),
        ("private, must-revalidate, max-age=60", 60),
        (", max-age=60 ,", 60),
        ("max-age=60, max-age=60", 60),
        ("max-age=60, s-maxage=5", 60),
        ('max-age=60, extension="a, no-store"', 60),
        ("max-age=00060", 60),
        ("max-age=0", 0),
        ("max-age=99999999999999999999", 2**31),
        ("max-age=" + "9" * 10_000, 2**31),
    ],
)
def test_max_age_is_the_lifetime(cache_control: str, seconds: int) -> None:
    assert lifetime(cache_control=cache_control) == seconds


@pytest.mark.parametrize(
    "cache_control",
    [
        "",
        "public",
        "s-maxage=60",
        "max-age=60, no-cache",
        "max-age=60, no-store",
        "no-cache=set-cookie, max-age=60",
        'max-age=60, NO-CACHE="a"',
        "max-age=60, max-age=90",
        "max-age=90, max-age=60",
        "max-age",
        "max-age=",
        "max-age=-1",
        "max-age=+60",
        "max-age=1_0",
        "max-age=1.5",
        "max-age=1e9",
        "max-age=\u0663",
        "max-age = 60",
        "max-age=60; public",
        'max-age="60',
    ],
)
def test_without_a_usable_explicit_lifetime_nothing_is_fresh(cache_control: str) -> None:
    assert lifetime(cache_control=cache_control, last_modified="Sun, 06 Nov 1994 08:49:37 GMT") is None


def test_a_broken_cache_control_also_voids_expires() -> None:
    assert lifetime(cache_control="max-age = 60", date=DATE, expires=HOUR_LATER) is None


def test_expires_counts_from_the_servers_date_and_not_from_our_clock() -> None:
    assert lifetime(date="Tue, 14 Nov 2023 22:43:20 GMT", expires="Tue, 14 Nov 2023 22:53:20 GMT") == 600


def test_expires_without_date_counts_from_the_arrival() -> None:
    assert lifetime(expires=HOUR_LATER) == 3600


def test_max_age_goes_before_expires() -> None:
    assert lifetime(cache_control="max-age=60", date=DATE, expires=HOUR_LATER) == 60


def test_expires_in_the_past_is_not_fresh() -> None:
    found = freshness.lifetime({"date": DATE, "expires": HOUR_BEFORE}, NOW, NOW)
    assert not freshness.is_fresh(IMAGE._replace(checked=NOW, lifetime=found), NOW)


def test_a_far_expires_is_capped() -> None:
    assert lifetime(date=DATE, expires="Fri, 31 Dec 9999 23:59:59 GMT") == 2**31


@pytest.mark.parametrize("expires", ["0", "-1", "never", f"{HOUR_LATER}, {HOUR_LATER}", "2023-11-15T00:00:00Z"])
def test_an_expires_that_is_no_date_gives_no_lifetime(expires: str) -> None:
    assert lifetime(date=DATE, expires=expires) is None


def test_age_shortens_the_lifetime() -> None:
    assert lifetime(cache_control="max-age=60", age="20") == 40


@pytest.mark.parametrize("age", ["-5", "soon", "1.5", "", "+5", "-5, 20", "soon, 20", ", 20", "20 s"])
def test_an_age_that_makes_no_sense_is_ignored(age: str) -> None:
    assert lifetime(cache_control="max-age=60", age=age) == 60


@pytest.mark.parametrize("age", ["20, 50", "20,50", " 20 , soon", "20, 20"])
def test_of_several_ages_the_first_counts(age: str) -> None:
    assert lifetime(cache_control="max-age=60", age=age) == 40


def test_the_time_that_the_answer_took_counts_as_age() -> None:
    assert lasts(freshness.lifetime({"cache-control": "max-age=60", "age": "5"}, NOW - 8, NOW)) == 60 - 13


def test_a_date_before_our_clock_counts_as_age() -> None:
    assert lifetime(cache_control="max-age=7200", date=HOUR_BEFORE) == 3600


def test_a_server_whose_clock_is_ahead_makes_nothing_fresh_for_longer() -> None:
    assert lifetime(cache_control="max-age=60", date="Wed, 14 Nov 2029 22:13:20 GMT") == 60


def test_our_clock_set_back_in_between_adds_no_lifetime() -> None:
    assert lasts(freshness.lifetime({"cache-control": "max-age=60"}, NOW + 500, NOW)) == 60


@pytest.mark.parametrize("vary", ["*", "accept, *"])
def test_vary_star_is_never_fresh(vary: str) -> None:
    found = freshness.lifetime({"cache-control": "max-age=60", "vary": vary}, NOW, NOW)
    assert not freshness.is_fresh(IMAGE._replace(lifetime=found, checked=NOW), NOW)


def test_another_vary_leaves_the_lifetime() -> None:
    assert lifetime(cache_control="max-age=60", vary="Accept-Encoding") == 60


@pytest.mark.parametrize(
    ("now", "fresh"), [(NOW - 101, False), (NOW - 100, True), (NOW - 11, True), (NOW - 10, False), (NOW, False)]
)
def test_fresh_is_from_the_check_to_the_end_of_the_lifetime(now: float, *, fresh: bool) -> None:
    assert freshness.is_fresh(IMAGE, now) is fresh


def test_without_a_lifetime_an_image_is_never_fresh() -> None:
    assert not freshness.is_fresh(IMAGE._replace(lifetime=Lifetime()), IMAGE.checked)


@pytest.mark.parametrize(
    "etag",
    [
        *('"1a"', 'W/"1a"', '""', '"caf\xe9"', '"a\\b"', '"' + "a" * 1000 + '"'),
        *("5f3a-1b2", "1a", '"1a', 'w/"1a"', '"a"b"', '"a b"', " 5f3a  1b2 ", "a\tb", '"a,b"', "a,b", "'1a'", "W/1a"),
    ],
)
def test_an_entity_tag_is_kept_byte_for_byte(etag: str) -> None:
    assert freshness.validators({"etag": etag}) == Validators(etag=etag)


@pytest.mark.parametrize("once", ['"abc"', 'W/"abc"', "abc", '"a, b"', DATE])
@pytest.mark.parametrize("times", [2, 3])
def test_a_validator_that_came_several_times_is_sent_back_once(once: str, times: int) -> None:
    several = ", ".join([once] * times)
    assert freshness.validators({"etag": several, "last-modified": several})[:2] == (once, once)


@pytest.mark.parametrize(
    "etag",
    [
        *("", "*", "*, *", '"a", *', '*, "a"', "W/, *", '"a", "b"', '"a",W/"b"', '"a", b'),
        *('"a\r\nX: y"', '"a\x7f"', '"a\0"', '"\u20ac"', '"' + "a" * 2000 + '"', ", ".join(['"a"'] * 1000)),
    ],
)
def test_an_etag_that_cannot_be_sent_back_or_would_hold_for_others_is_dropped(etag: str) -> None:
    assert not freshness.validators({"etag": etag})


@pytest.mark.parametrize("last_modified", [DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "06 november 1994", "  ", "caf\xe9"])
def test_last_modified_is_kept_byte_for_byte(last_modified: str) -> None:
    assert freshness.validators({"last-modified": last_modified}).last_modified == last_modified


@pytest.mark.parametrize("last_modified", ["", "*", DATE + "\r\nX: y", "\x00", "\x1b[2J", "\u20ac", "a" * 2000])
def test_a_last_modified_that_cannot_be_sent_back_is_dropped(last_modified: str) -> None:
    assert not freshness.validators({"last-modified": last_modified})


def test_both_validators_are_sent() -> None:
    assert freshness.condition(Validators('W/"1"', DATE)) == {"If-None-Match": 'W/"1"', "If-Modified-Since": DATE}


def test_without_validators_the_request_is_unconditional() -> None:
    assert freshness.condition(Validators()) == {}


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_all_three_forms_of_date_are_read(date: str) -> None:
    assert freshness.modified_time(date, NOW) == 784111777


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "yesterday",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 1970 23:59:59 GMT",
        "Mon, 06 Nov 1815 08:49:37 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 16 Nov 2023 22:13:20 GMT",
        "Sun, 31 Feb 2020 08:49:37 GMT",
        "Sun, 06 Nov 2020 25:61:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Foo 2020 08:49:37 GMT",
        "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
        "Sun, 06 Nov 2020 08:49:37 +99999999999999999999",
        "Sun, \u0660\u0666 Nov 2020 08:49:37 GMT",
        f"{DATE}, {DATE}",
    ],
)
def test_a_last_modified_that_is_no_sane_date_gives_no_time(date: str | None) -> None:
    assert freshness.modified_time(date, NOW) is None


def test_a_last_modified_some_hours_ahead_is_still_sane() -> None:
    assert freshness.modified_time(HOUR_LATER, NOW) == NOW + 3600
    assert freshness.modified_time(freshness.http_date(NOW + 86400), NOW) == NOW + 86400
    assert freshness.modified_time(freshness.http_date(NOW + 86401), NOW) is None


@pytest.mark.parametrize(
    ("year", "seconds"), [("68", 3092601600), ("69", -31536000), ("99", 915148800), ("00", 946684800)]
)
def test_a_year_of_two_digits_is_between_1969_and_2068(year: str, seconds: int) -> None:
    begun = -(10.0**9)
    assert freshness.retry_after({"retry-after": f"Monday, 01-Jan-{year} 00:00:00 GMT"}, begun) == seconds - begun


@pytest.mark.parametrize(("timestamp", "second"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1e15, 253402300799.0)])
def test_a_time_beyond_what_http_can_tell_is_the_nearest_that_it_can(timestamp: float, second: float) -> None:
    assert freshness.http_date(timestamp) == freshness.http_date(second)
    assert freshness.retry_after({"retry-after": freshness.http_date(second)}, -1.0) == second + 1


def test_the_longest_validator_is_one_of_1024_characters_however_often_it_came() -> None:
    longest = '"' + "a" * 1022 + '"'
    for tag in (longest, f"{longest}, {longest}"):
        assert freshness.validators({"etag": tag}).etag == longest
    for tag in (f"{longest}a", f"{longest}a, {longest}a"):
        assert freshness.validators({"etag": tag}).etag is None


@given(st.floats(allow_nan=False))
def test_any_file_time_can_be_told_as_a_date(timestamp: float) -> None:
    assert freshness.http_date(timestamp).endswith(" GMT")


@given(st.integers(0, 253402300799))
def test_a_date_that_was_told_is_read_back(timestamp: int) -> None:
    assert freshness.retry_after({"retry-after": freshness.http_date(timestamp)}, 0.0) == max(1, timestamp)


def test_a_304_replaces_what_came_and_keeps_what_did_not() -> None:
    headers = {"cache-control": "max-age=60", "etag": '"1"', "last-modified": HOUR_BEFORE}
    expected = NotModified(IMAGE, Validators('"1"', HOUR_BEFORE), Lifetime(60.0, date=NOW), checked=NOW)
    assert freshness.renewed(IMAGE, headers, NOW, NOW) == expected


@pytest.mark.parametrize("etag", [None, '"1"'])
def test_a_304_that_tells_another_last_modified_and_no_etag_is_about_another_version(etag: str | None) -> None:
    image = IMAGE._replace(validators=Validators(etag, DATE))
    assert freshness.renewed(image, {"last-modified": HOUR_BEFORE}, NOW, NOW) is None
    renewed = freshness.renewed(image, {"last-modified": DATE}, NOW, NOW)
    assert renewed == NotModified(image, image.validators, Lifetime(90.0, date=NOW), NOW)


def test_a_bare_304_begins_the_lifetime_anew() -> None:
    renewed = freshness.renewed(IMAGE, {}, NOW, NOW)
    assert renewed == NotModified(IMAGE, IMAGE.validators, Lifetime(90.0, date=NOW), NOW)


MINUTE, EXPIRES = {"cache-control": "max-age=60"}, {"expires": HOUR_LATER}
STALE = NOW - 500.0
STORED = {
    "max-age": Lifetime(90.0, date=STALE, age=50.0),
    "max-age, expires": Lifetime(90.0, NOW + 1800, date=STALE),
    "expires": Lifetime(None, NOW + 1800, date=STALE),
    "past expires": Lifetime(None, NOW - 10, date=STALE),
    "nothing": Lifetime(date=STALE),
    "no-cache": Lifetime(-1.0, NOW + 1800, date=STALE),
    "vary": Lifetime(90.0, varies=True, date=STALE),
    "redirect": Lifetime(90.0, date=STALE, redirects_end=NOW - 10),
}


@pytest.mark.parametrize(
    ("stored", "headers", "seconds"),
    [
        ("max-age", {}, 90),
        ("max-age", {"date": HOUR_LATER}, 90),
        ("max-age", {"date": "Tue, 14 Nov 2023 22:13:10 GMT"}, 80),
        ("max-age", {"age": "20"}, 70),
        ("max-age", {"age": "soon"}, 90),
        ("max-age", {"vary": "accept"}, 90),
        ("max-age", {"vary": "*"}, None),
        ("max-age", MINUTE, 60),
        ("max-age", MINUTE | {"age": "20, 50"}, 40),
        ("max-age", MINUTE | {"vary": "*"}, None),
        ("max-age", EXPIRES, 90),
        ("max-age", {"cache-control": "no-cache"}, None),
        ("max-age", {"cache-control": "max-age = 60"}, None),
        ("max-age", {"cache-control": "public"}, None),
        ("max-age", {"cache-control": "public"} | EXPIRES, 3600),
        ("max-age", {"cache-control": ""} | EXPIRES, 3600),
        ("max-age, expires", {"cache-control": "public"}, 1800),
        ("max-age, expires", {"cache-control": "public", "expires": "0"}, None),
        ("expires", {}, 1800),
        ("expires", {"date": "Tue, 14 Nov 2023 22:23:20 GMT"}, 1200),
        ("expires", {"age": "20"}, 1780),
        ("expires", EXPIRES, 3600),
        ("expires", {"expires": "0"}, None),
        ("expires", MINUTE, 60),
        ("expires", {"cache-control": "no-store"}, None),
        ("past expires", {}, None),
        ("past expires", EXPIRES, 3600),
        ("nothing", {}, None),
        ("nothing", {"age": "0"}, None),
        ("nothing", MINUTE, 60),
        ("nothing", EXPIRES, 3600),
        ("no-cache", {}, None),
        ("no-cache", EXPIRES, None),
        ("no-cache", {"vary": "accept"}, None),
        ("no-cache", MINUTE, 60),
        ("no-cache", {"cache-control": "public"}, 1800),
        ("vary", {}, None),
        ("vary", MINUTE, None),
        ("vary", {"vary": "accept"}, 90),
        ("vary", {"vary": "accept"} | MINUTE, 60),
        ("redirect", {}, 90),
        ("redirect", MINUTE, 60),
    ],
)
def test_a_304_begins_the_lifetime_anew_by_the_fields_that_it_has_and_those_that_are_stored(
    stored: str, headers: dict[str, str], seconds: float | None
) -> None:
    """RFC 9111, 4.3.4. What forbade one, and does not come again, still does: no-cache, or Vary: *."""
    found = freshness.renewed(IMAGE._replace(lifetime=STORED[stored]), headers, NOW, NOW)
    assert found is not None
    assert lasts(found.lifetime) == seconds


@pytest.mark.parametrize(
    ("redirects", "seconds"),
    [
        ([], 90),
        ([{"cache-control": "max-age=60"}], 60),
        ([{"cache-control": "max-age=600"}, {"cache-control": "max-age=60"}], 60),
        ([{"cache-control": "max-age=600"}], 90),
        ([{"expires": HOUR_LATER}], 90),
        ([{"cache-control": "max-age=60"}, {}], None),
        ([{"cache-control": "max-age=60", "vary": "*"}], None),
    ],
)
def test_the_first_of_the_redirects_to_end_bounds_the_lifetime(
    redirects: list[dict[str, str]], seconds: float | None
) -> None:
    end = freshness.redirects_end((headers, NOW, NOW) for headers in redirects)
    assert lasts(freshness.lifetime({"cache-control": "max-age=90"}, NOW, NOW, end)) == seconds
    renewed = freshness.renewed(IMAGE, {}, NOW, NOW, end)
    assert renewed is not None
    assert lasts(renewed.lifetime) == seconds


@pytest.mark.parametrize(("stored", "told"), [('"1"', '"2"'), ('"2"', '"1"'), ('W/"1"', '"2"'), ('"1"', 'W/"2"')])
def test_a_304_for_another_etag_renews_nothing(stored: str, told: str) -> None:
    image = IMAGE._replace(validators=Validators(stored, DATE))
    assert freshness.renewed(image, {"etag": told, "last-modified": DATE}, NOW, NOW) is None


@pytest.mark.parametrize("told", ['"1"', 'W/"1"', "1"])
def test_a_304_for_our_etag_matches_weakly(told: str) -> None:
    renewed = freshness.renewed(IMAGE, {"etag": told}, NOW, NOW)
    assert renewed is not None
    assert renewed.validators.etag == told


def test_a_304_gives_an_etag_to_an_image_that_had_none_only_with_its_last_modified() -> None:
    """Another version that was not modified since ours, since it is older, has another ETag and no other sign."""
    image = IMAGE._replace(validators=Validators(None, DATE, b"target"))
    renewed = freshness.renewed(image, {"etag": '"9"', "last-modified": DATE}, NOW, NOW)
    assert renewed is not None
    assert renewed.validators == Validators('"9"', DATE, b"target")
    assert freshness.renewed(image, {"etag": '"9"'}, NOW, NOW) is None
    for other in (HOUR_BEFORE, HOUR_LATER):
        assert freshness.renewed(image, {"etag": '"9"', "last-modified": other}, NOW, NOW) is None
    assert freshness.renewed(IMAGE._replace(validators=Validators()), {"etag": '"9"'}, NOW, NOW) is None


def test_a_file_of_another_program_is_known_by_its_time_alone() -> None:
    """Go's servers tell of an ETag in a 304 and of no Last-Modified (RFC 9110, 15.4.5)."""
    image = IMAGE._replace(media_type=None, validators=Validators(None, DATE))
    renewed = freshness.renewed(image, {"etag": '"9"'}, NOW, NOW)
    assert renewed is not None
    assert renewed.validators == image.validators
    assert freshness.renewed(image, {"etag": '"9"', "last-modified": HOUR_BEFORE}, NOW, NOW) is None


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (" 120 ", None, 120.0),
        ("1", None, 1.0),
        ("0", None, 1.0),
        ("9" * 10_000, None, float(2**31)),
        (HOUR_LATER, None, 3600.0),
        (HOUR_LATER, DATE, 3600.0),
        (HOUR_LATER, "junk", 3600.0),
        (DATE, HOUR_BEFORE, 3600.0),
        (HOUR_LATER, HOUR_BEFORE, 7200.0),
        (DATE, None, 1.0),
        (HOUR_BEFORE, None, 1.0),
        (HOUR_LATER, HOUR_LATER, 1.0),
        (None, None, None),
        ("", None, None),
        ("-5", None, None),
        ("+5", None, None),
        ("1.5", None, None),
        ("soon", DATE, None),
        ("120, 60", None, None),
        (f"{HOUR_LATER}, {HOUR_LATER}", None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_server_s_clock_or_nothing(
    value: str | None, date: str | None, seconds: float | None
) -> None:
    told = {"retry-after": value, "date": date}
    assert freshness.retry_after({name: text for name, text in told.items() if text is not None}, NOW) == seconds


RESUMABLE = {"accept-ranges": "bytes", "etag": '"1"', "last-modified": DATE}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"accept-ranges": "BYTES"},
        {"accept-ranges": "", "content-range": "bytes 5-9/10"},
    ],
)
def test_a_body_with_a_strong_etag_can_be_resumed(change: dict[str, str]) -> None:
    assert freshness.is_resumable(RESUMABLE | change)


@pytest.mark.parametrize(
    "change",
    [
        {"etag": 'W/"1"'},
        {"etag": "1"},
        {"etag": "1", "date": HOUR_LATER},
        {"etag": 'W/"1"', "date": HOUR_LATER},
        {"accept-ranges": "none"},
        {"accept-ranges": ""},
        {"etag": '"1" 2'},
    ],
)
def test_any_other_body_cannot_be_resumed(change: dict[str, str]) -> None:
    assert not freshness.is_resumable(RESUMABLE | change)


@pytest.mark.parametrize(
    ("date", "strong"),
    [
        (HOUR_LATER, True),
        ("Tue, 14 Nov 2023 22:14:20 GMT", True),
        ("Tue, 14 Nov 2023 22:14:19 GMT", False),
        (DATE, False),
        (HOUR_BEFORE, False),
        ("junk", False),
        (None, False),
    ],
)
def test_without_any_etag_a_strong_date_is_as_good(date: str | None, *, strong: bool) -> None:
    headers = {"accept-ranges": "bytes", "last-modified": DATE} | ({} if date is None else {"date": date})
    assert freshness.is_resumable(headers) is strong
    assert not freshness.is_resumable(headers | {"last-modified": "junk"})


@given(
    st.dictionaries(
        st.sampled_from(["cache-control", "expires", "date", "age", "vary", "etag", "last-modified", "accept-ranges"]),
        HEADER_TEXT | st.from_regex(r"(max-age|no-store|x)=?\"?[0-9]*\"?,? ?(max-age=1)?", fullmatch=True),
    )
)
def test_no_header_makes_a_decision_crash_or_last_for_ever(headers: dict[str, str]) -> None:
    assert freshness.end(freshness.lifetime(headers, NOW, NOW), NOW) <= NOW + 2**31
    renewed = freshness.renewed(IMAGE, headers, NOW, NOW)
    assert renewed is None or freshness.end(renewed.lifetime, NOW) <= NOW + 2**31
    freshness.is_resumable(headers)
    for value in headers.values():
        freshness.retry_after(headers | {"retry-after": value}, NOW)
        freshness.modified_time(value, NOW)


AWKWARD_TEXT = st.text(st.sampled_from("a\xff\u0100\r\n\0"), max_size=3)


@given(AWKWARD_TEXT.map('"{}"'.format), AWKWARD_TEXT)
def test_what_is_sent_back_fits_into_one_header_line(etag: str, last_modified: str) -> None:
    for value in freshness.condition(freshness.validators({"etag": etag, "last-modified": last_modified})).values():
        assert value != "*"
        assert max(value) <= "\xff"  # Latin-1, as headers are sent
        assert not set(value) & set("\r\n\0")
