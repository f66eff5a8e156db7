"""Images from the servers, proxies and caches that the web is made of, as Debian has them."""

from __future__ import annotations

import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import requests

import services
from conftest import Loader, Run, Running
from exchange import png
from server import Server
from services import Service

pytestmark = pytest.mark.slow

IMAGES = 30
LARGE = 200_000_000
THEN = 1_600_000_000
DAY = 86_400
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'>" + b"<g/>" * 500 + b"</svg>"


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that servers can read which do not stay root."""
    made = Path(tempfile.mkdtemp(prefix="image_loader-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., Service]]:
    """Start servers, by the functions that do so, and end them."""
    with ExitStack() as stack:
        yield lambda make, *arguments, **lines: stack.enter_context(
            closing(make(home / make.__name__, *arguments, **lines))
        )


ORIGINS = {
    "nginx": services.nginx,
    "apache2": services.apache2,
    "lighttpd": services.lighttpd,
    "php": services.php,
    "python": services.python,
}
SENDS_NO_VALIDATORS = {"php"}
TELLS_TIMES_ALONE = {"python"}
"""A file whose date goes back is one that has not changed since."""
RESUMES = {"nginx", "apache2", "lighttpd"}


@pytest.fixture(params=ORIGINS)
def origin(request: pytest.FixtureRequest, begin: Callable[..., Service]) -> Service:
    """One origin after the other."""
    return begin(ORIGINS[request.param])


def kind(service: Service) -> str:
    """Return which origin it is."""
    return service.home.name


def fill(service: Service) -> dict[str, bytes]:
    """Put images there; return them by their names."""
    images = {f"{number:04}.png": png(f"first {number}", 4000) for number in range(IMAGES)}
    for name, body in images.items():
        service.write(name, body, THEN)
    return images


def assert_saved(run: Run, service: Service, images: dict[str, bytes]) -> None:
    """See that the images are as they are there."""
    for name, body in images.items():
        assert run.content(service.url(name)) == body


def test_a_second_run_over_an_origin_asks_conditionally(origin: Service, loader: Loader) -> None:
    images = fill(origin)
    urls = [origin.url(name) for name in images]
    first = loader.run(urls)
    assert first.counts == (IMAGES, 0, 0, 0)
    assert_saved(first, origin, images)
    assert origin.statuses(IMAGES) == {200: IMAGES}
    second = loader.run(urls)
    if kind(origin) in SENDS_NO_VALIDATORS:
        assert second.counts == (IMAGES, 0, 0, 0)
    else:
        assert second.counts == (0, IMAGES, 0, 0)
        assert origin.statuses(IMAGES) == {304: IMAGES}
    assert_saved(second, origin, images)


@pytest.mark.parametrize("days", [1, -1], ids=["a later date", "an earlier date"])
def test_an_image_of_an_origin_that_changed_is_fetched(origin: Service, loader: Loader, days: int) -> None:
    images = fill(origin)
    urls = [origin.url(name) for name in images]
    loader.run(urls)
    name = "0007.png"
    images[name] = png("second", 4000)
    origin.write(name, images[name], THEN + days * DAY)
    run = loader.run(urls, "--revalidate")
    if kind(origin) in TELLS_TIMES_ALONE and days < 0:
        assert run.row(origin.url(name))["status"] == "fresh"
        run = loader.run(urls, "--force")
    else:
        changed = {row["url"] for row in run.rows if row["status"] == "saved"}
        assert changed == set(urls if kind(origin) in SENDS_NO_VALIDATORS else [origin.url(name)])
    assert_saved(run, origin, images)


def test_an_image_that_an_origin_does_not_have_fails_alone(origin: Service, loader: Loader) -> None:
    images = fill(origin)
    missing = origin.url("missing.png")
    run = loader.run([missing, *map(origin.url, images)])
    assert run.counts == (IMAGES, 0, 0, 1)
    assert (run.row(missing)["reason"], run.row(missing)["http_status"]) == ("http-status", 404)
    assert run.files == images.keys()


def stop_within_body(running: Running, loader: Loader) -> int:
    """Stop the command while it writes a large image; return how much of it there is."""
    while (size := _written(loader)) < 100_000:
        assert running.process.poll() is None, running.told
        time.sleep(0.001)
    running.send(signal.SIGSTOP)
    return max(size, _written(loader))


def _written(loader: Loader) -> int:
    size = 0
    for path in (loader.directory / ".image_loader" / "partial").glob("*"):
        with suppress(FileNotFoundError):
            size = max(size, path.stat().st_size)
    return size


def test_a_large_image_is_whole_though_its_origin_restarts(origin: Service, loader: Loader) -> None:
    body = png("large", LARGE)
    origin.write("large.png", body, THEN)
    running = loader.start([origin.url("large.png")])
    assert stop_within_body(running, loader) < LARGE
    origin.kill()
    origin.start()
    running.send(signal.SIGCONT)
    run = running.finish(120)
    assert run.counts == (1, 0, 0, 0)
    assert run.row(origin.url("large.png"))["attempts"] >= 2
    assert run.content(origin.url("large.png")) == body
    if kind(origin) in RESUMES:
        assert origin.statuses(1)[206] == 1


@pytest.mark.parametrize("name", ["nginx", "apache2", "lighttpd"])
def test_an_svg_that_is_compressed_on_the_fly_is_saved_as_it_is(
    begin: Callable[..., Service], loader: Loader, name: str
) -> None:
    service = begin(ORIGINS[name])
    service.write("a.svg", SVG, THEN)
    url = service.url("a.svg")
    answer = requests.get(url, headers={"Accept-Encoding": "gzip"}, timeout=10)
    assert answer.headers["Content-Encoding"] == "gzip"
    for counts in ((1, 0, 0, 0), (0, 1, 0, 0)):
        run = loader.run([url])
        assert run.counts == counts
        assert run.content(url) == SVG


# Busy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("burst", ["", "burst=10", "burst=10 nodelay"])
def test_limit_req_of_nginx_loses_no_image(
    begin: Callable[..., Service], loader: Loader, burst: str, status: int
) -> None:
    zone = f"limit_req_zone $binary_remote_addr zone=one:1m rate=20r/s; limit_req_status {status};"
    service = begin(services.nginx, http=zone, location=f"limit_req zone=one {burst};")
    images = {f"{number:04}.png": png(f"busy {number}", 4000) for number in range(200)}
    for name, body in images.items():
        service.write(name, body, THEN)
    run = loader.run([service.url(name) for name in images], seconds=120)
    assert run.counts == (200, 0, 0, 0)
    assert_saved(run, service, images)
    assert len(service.asked()) <= 1.7 * 200


# In front of an origin ----------------------------------------------------------------------------------------------


def test_haproxy_in_front_changes_nothing(begin: Callable[..., Service], loader: Loader) -> None:
    behind = begin(services.nginx)
    front = begin(services.haproxy, behind.port)
    images = fill(behind)
    urls = [front.url(name) for name in images]
    assert loader.run(urls).counts == (IMAGES, 0, 0, 0)
    run = loader.run(urls)
    assert run.counts == (0, IMAGES, 0, 0)
    assert behind.statuses(2 * IMAGES) == {200: IMAGES, 304: IMAGES}
    assert_saved(run, front, images)


@pytest.mark.parametrize("which", ["origin", "proxy"])
@pytest.mark.parametrize("make", [services.haproxy, services.varnish, services.squid])
def test_a_large_image_is_whole_though_a_server_on_its_way_restarts(
    begin: Callable[..., Service], loader: Loader, make: Callable[..., Service], which: str
) -> None:
    origin = begin(services.nginx)
    proxy = begin(make) if make is services.squid else begin(make, origin.port)
    environment = {"http_proxy": proxy.origin} if make is services.squid else {}
    url = (origin if make is services.squid else proxy).url("large.png")
    body = png("large", LARGE)
    origin.write("large.png", body, THEN)
    running = loader.start([url], environment=environment)
    assert stop_within_body(running, loader) < LARGE
    restarted = origin if which == "origin" else proxy
    restarted.kill()
    restarted.start()
    running.send(signal.SIGCONT)
    run = running.finish(120)
    assert run.counts == (1, 0, 0, 0)
    assert run.content(url) == body


def test_varnish_answers_with_what_it_keeps_and_a_later_run_gets_what_changed(
    begin: Callable[..., Service], loader: Loader
) -> None:
    behind = begin(services.nginx, location="add_header Cache-Control max-age=2;")
    front = begin(services.varnish, behind.port)
    images = fill(behind)
    urls = [front.url(name) for name in images]
    assert loader.run(urls).counts == (IMAGES, 0, 0, 0)
    assert loader.run(urls, "--revalidate").counts == (0, IMAGES, 0, 0)
    images["0007.png"] = png("second", 4000)
    behind.write("0007.png", images["0007.png"], THEN + DAY)
    give_up = time.monotonic() + 30
    while (run := loader.run(urls, "--revalidate")).counts != (1, IMAGES - 1, 0, 0):
        assert time.monotonic() < give_up
        assert run.counts == (0, IMAGES, 0, 0)
    assert_saved(run, front, images)


def test_force_cannot_pass_a_reverse_cache(begin: Callable[..., Service], loader: Loader) -> None:
    behind = begin(services.nginx, location="add_header Cache-Control max-age=3600;")
    front = begin(services.varnish, behind.port)
    old, new = png("first", 4000), png("second", 4000)
    behind.write("a.png", old, THEN)
    url = front.url("a.png")
    loader.run([url])
    behind.write("a.png", new, THEN + DAY)
    run = loader.run([url], "--force")
    assert (run.counts, run.content(url)) == ((1, 0, 0, 0), old)


# A forward proxy ----------------------------------------------------------------------------------------------------


def test_force_and_revalidate_pass_a_forward_cache(begin: Callable[..., Service], loader: Loader) -> None:
    origin = begin(services.nginx, location="add_header Cache-Control max-age=3600;")
    proxy = begin(services.squid)
    environment = {"http_proxy": proxy.origin}
    images = fill(origin)
    urls = [origin.url(name) for name in images]
    assert loader.run(urls, environment=environment).counts == (IMAGES, 0, 0, 0)
    assert loader.run(urls, environment=environment).counts == (0, IMAGES, 0, 0)
    assert len(proxy.asked()) == IMAGES
    for option, name in (("--revalidate", "0007.png"), ("--force", "0008.png")):
        images[name] = png(option, 4000)
        origin.write(name, images[name], THEN + DAY)
        run = loader.run(urls, option, environment=environment)
        assert run.row(origin.url(name))["status"] == "saved"
        assert_saved(run, origin, images)


def test_https_goes_through_a_forward_proxy(
    begin: Callable[..., Service], new_server: Callable[..., Server], loader: Loader, tls: ssl.SSLContext, bundle: str
) -> None:
    origin = new_server(tls=tls)
    proxy = begin(services.squid)
    environment = {"https_proxy": proxy.origin, "REQUESTS_CA_BUNDLE": bundle}
    urls = [origin.url(f"/image/{number}.png") for number in range(IMAGES)]
    run = loader.run(urls, environment=environment)
    assert run.counts == (IMAGES, 0, 0, 0)
    assert all(run.content(url) == origin.image(f"/image/{number}.png") for number, url in enumerate(urls))
    assert loader.run(urls, environment=environment).counts == (0, IMAGES, 0, 0)
    assert {status for _, status in proxy.asked()} == {200}
    assert loader.run(urls, "--force", environment={"https_proxy": proxy.origin}).counts == (0, 0, 0, IMAGES)


# PHP that sends no length -------------------------------------------------------------------------------------------

READFILE = b"<?php header('Content-Type: image/png'); readfile('large.png');"


@pytest.mark.parametrize("front", [None, services.haproxy, services.nginx], ids=["alone", "haproxy", "nginx"])
def test_an_image_without_length_whose_server_is_killed_is_truncated(
    begin: Callable[..., Service], loader: Loader, front: Callable[..., Service] | None
) -> None:
    origin = begin(services.php)
    service = origin
    if front is services.nginx:
        service = begin(front, location=f"proxy_pass {origin.origin}; proxy_buffering off;")
    elif front is not None:
        service = begin(front, origin.port)
    old = png("old", LARGE)
    origin.write("large.png", old, THEN)
    (origin.www / "image.php").write_bytes(READFILE)
    url = service.url("image.php")
    assert "Content-Length" not in requests.get(url, timeout=10, stream=True).headers
    assert loader.run([url]).counts == (1, 0, 0, 0)
    origin.write("large.png", png("new", LARGE), THEN)
    running = loader.start([url], "--retries", "0")
    assert stop_within_body(running, loader) < LARGE
    origin.kill()
    running.send(signal.SIGCONT)
    run = running.finish(120)
    assert (run.counts, run.rows[0]["reason"]) == ((0, 0, 0, 1), "truncated")
    assert [path.read_bytes() == old for path in loader.directory.glob("*.png")] == [True]


# S3 -----------------------------------------------------------------------------------------------------------------


def test_a_double_of_s3_is_asked_conditionally(begin: Callable[..., Service], loader: Loader) -> None:
    service = begin(services.moto)
    requests.put(service.url("bucket"), timeout=30).raise_for_status()
    images = {f"bucket/{number:04}.png": png(f"s3 {number}", 4000) for number in range(IMAGES)}

    headers = {"Content-Type": "image/png", "x-amz-acl": "public-read"}

    def put(name: str, body: bytes) -> None:
        requests.put(service.url(name), body, headers=headers, timeout=30).raise_for_status()

    for name, body in images.items():
        put(name, body)
    urls = [service.url(name) for name in images]
    assert loader.run(urls).counts == (IMAGES, 0, 0, 0)
    assert loader.run(urls).counts == (0, IMAGES, 0, 0)
    images["bucket/0007.png"] = png("second", 4000)
    put("bucket/0007.png", images["bucket/0007.png"])
    run = loader.run([*urls, service.url("bucket/missing.png")])
    assert run.counts == (1, IMAGES - 1, 0, 1)
    assert_saved(run, service, images)
