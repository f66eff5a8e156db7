"""The scenarios: what is asked of every command, and from which server."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from commands import TRIES
from images import FIRST_MODIFIED, make_images, write_image
from names import resolver
from servers import (
    GOOD_HOSTS,
    HOST,
    SILENT_HOSTS,
    SLOW_DELAY,
    SLOW_HOSTS,
    TLS_HOST,
    MissingError,
    Server,
    hanging_host,
    hanging_hosts,
    refusing_host,
)

KIB, MIB = 1 << 10, 1 << 20
DEFAULT_CONCURRENCY = 10  # image_loader's default for one host
DEFAULT_CONCURRENCY_OF_MANY_HOSTS = 32  # and for all together
AT_ONCE = 32
AT_ONCE_OPTIONS = ("--threads", str(AT_ONCE), "--per-host", str(AT_ONCE))
AT_ONCE_PEERS = ("wget2", "aria2c", "curl", "requests", "urllib3")  # wget has one connection: minutes for what is known
LIST_PEERS = ("wget2", "aria2c", "curl")  # those that might get there
DEAD_LINES = 1000
GOOD_LINES = 1000
WIDE = "wide.test"  # the domain of the many hosts, each of them with a name of its own below it
WIDE_PEERS = ("wget", "wget2", "aria2c", "curl", "requests", "img2dataset")
FAR_PEERS = ("wget2", "aria2c", "curl", "requests", "img2dataset")
DAY = 86_400


@dataclass(frozen=True)
class Scenario:
    """One task for every command.

    ``originals`` are the images that must stand in the directory afterwards (none: only times count). Where ``again``,
    they stand there from an earlier run of the same command, and ``change`` is called with the number of each round.
    ``ideal`` is what the server's latency alone takes, in seconds. ``peers`` are the only ones to take part, if given,
    and have so many ``tries``. ``unit`` is what a line stands for. ``authority`` is the file of the certificate
    authority to trust, and ``enter`` stands before each command, to have it run where the names of the list are known.
    """

    name: str
    title: str
    urls: Path
    lines: int
    limit: float
    originals: tuple[Path, ...] = ()
    concurrency: int = DEFAULT_CONCURRENCY
    options: tuple[str, ...] = ()
    again: bool = False
    change: Callable[[int], None] = lambda _: None
    ideal: float | None = None
    peers: tuple[str, ...] | None = None
    tries: int = TRIES
    unit: str = "line"
    authority: Path | None = None
    enter: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What the scenarios are made of; ``limit`` is for one run, in seconds, and ``list_lengths`` are in lines."""

    directory: Path
    root: Path
    server: Server
    images: int
    limit: float
    list_limit: float
    wide_limit: float
    list_lengths: tuple[int, ...]

    @cached_property
    def small(self) -> tuple[Path, ...]:
        """Make images of about 20 KB."""
        return make_images(self.root / "small", self.images, 10 * KIB, 30 * KIB)

    @cached_property
    def large(self) -> tuple[Path, ...]:
        """Make images of 2 to 10 MB, 300 for 5,000 small ones."""
        return make_images(self.root / "large", self.images * 6 // 100, 2 * MIB, 10 * MIB)

    def many(self, number: int) -> str:
        """Return the path of one of any number of images of 100 bytes; they are one and the same."""
        if not (self.root / "pixel").exists():
            make_images(self.root / "pixel", 1, 100, 100)
        return f"many/{number:07d}.png"

    @property
    def authority(self) -> Path:
        """The file of the server's certificate authority."""
        if self.server.certificates is None:
            raise MissingError("trustme is missing: pip install '.[benchmark]'")
        return self.server.certificates.authority

    def write_list(self, name: str, urls: Iterable[str]) -> Path:
        """Write ``urls`` one by one: a list of a million never stands in memory here either."""
        path = self.directory / f"{name}.txt"
        with path.open("w") as file:
            file.writelines(f"{url}\n" for url in urls)
        return path

    def address(self, original: Path, prefix: str = "", host: str = HOST) -> str:
        """Return the URL of one of the images; ``prefix`` is one of the server's locations."""
        return self.server.url(prefix + _path(original), host)

    def download(self, name: str, title: str, originals: tuple[Path, ...], prefix: str = "") -> Scenario:
        """Make the scenario that the others are variants of: images from one host, with image_loader's defaults."""
        urls = self.write_list(name, (self.address(original, prefix) for original in originals))
        return Scenario(name, f"{title}: {len(originals)} images", urls, len(originals), self.limit, originals)


def first_small(bench: Bench) -> Iterator[Scenario]:
    """Show what the client itself costs: small images, no latency."""
    yield bench.download("first-small", "first download, no latency, 20 KB, one host", bench.small)


def first_large(bench: Bench) -> Iterator[Scenario]:
    """Show what each copy on the way costs: large images, no latency."""
    yield bench.download("first-large", "first download, no latency, 2 to 10 MB, one host", bench.large)


def latency_50(bench: Bench) -> Iterator[Scenario]:
    """Show how well waiting is used: the latency of a near server."""
    scenario = bench.download("latency-50", "first download, 50 ms to the first byte, 32 at once", bench.small, "50ms/")
    yield _at_once(scenario, 0.05)


def latency_200(bench: Bench) -> Iterator[Scenario]:
    """Show the same at the latency of a far or busy server."""
    originals = bench.small[: bench.images * 2 // 5]
    scenario = bench.download(
        "latency-200", "first download, 200 ms to the first byte, 32 at once", originals, "200ms/"
    )
    yield _at_once(scenario, 0.2)


def hosts_40(bench: Bench) -> Iterator[Scenario]:
    """Show whether slow hosts hold up quick ones: their images stand mixed in the list."""
    originals = bench.small[: bench.images * 2 // 5]
    urls = [bench.address(original, host=SLOW_HOSTS[n % len(SLOW_HOSTS)]) for n, original in enumerate(originals)]
    random.Random(0).shuffle(urls)
    yield Scenario(
        "hosts-40",
        f"first download, 40 hosts of 5 to 200 ms, defaults: {len(urls)} images",
        bench.write_list("hosts-40", urls),
        len(urls),
        bench.limit,
        originals,
        DEFAULT_CONCURRENCY_OF_MANY_HOSTS,
        peers=AT_ONCE_PEERS,
        ideal=sum(SLOW_DELAY * (n % len(SLOW_HOSTS) + 1) for n in range(len(urls))) / DEFAULT_CONCURRENCY_OF_MANY_HOSTS,
    )


def hosts_8(bench: Bench) -> Iterator[Scenario]:
    """Show what the client itself costs where there are several hosts: small images, no latency."""
    yield _hosts_8(bench, "hosts-8", "first download, no latency, 20 KB, 8 hosts")


def verify(bench: Bench) -> Iterator[Scenario]:
    """Show what decoding each image costs."""
    scenario = _hosts_8(bench, "verify", "first download with --verify, no latency, 20 KB, 8 hosts")
    yield replace(scenario, options=("--verify",), peers=())


def _hosts_8(bench: Bench, name: str, title: str) -> Scenario:
    urls = (bench.address(original, host=GOOD_HOSTS[n % 8]) for n, original in enumerate(bench.small))
    scenario = bench.download(name, title, bench.small)
    concurrency = DEFAULT_CONCURRENCY_OF_MANY_HOSTS
    return replace(scenario, urls=bench.write_list(name, urls), concurrency=concurrency, peers=AT_ONCE_PEERS)


def again_304(bench: Bench) -> Iterator[Scenario]:
    """Show what asking costs where nothing changed."""
    yield replace(bench.download("again-304", "second run, 304 for each", bench.small), again=True)


def again_304_near(bench: Bench) -> Iterator[Scenario]:
    """Show the same at the latency of a server in the same building."""
    scenario = bench.download("again-304-near", "second run, 304 for each, 1 ms to the first byte", bench.small, "1ms/")
    yield replace(scenario, again=True)


def again_fresh(bench: Bench) -> Iterator[Scenario]:
    """Show what heeding the headers of the first run saves."""
    title = "second run, fresh by Cache-Control"
    yield replace(bench.download("again-fresh", title, bench.small, "fresh/"), again=True)


def again_changed(bench: Bench) -> Iterator[Scenario]:
    """Show that what changed is found, one in a hundred."""
    scenario = bench.download("again-changed", "second run, 1 % changed", bench.small)
    yield replace(scenario, again=True, change=partial(_change_one_percent, bench.small))


def dead_hosts(bench: Bench) -> Iterator[Scenario]:
    """Show whether dead hosts hold up twenty good ones; first the good ones alone, for comparison."""
    originals = bench.small[: min(GOOD_LINES, bench.images)]
    good = [bench.address(original, host=GOOD_HOSTS[n % len(GOOD_HOSTS)]) for n, original in enumerate(originals)]
    with hanging_host() as hanging, refusing_host() as refusing:
        dead = [f"http://{(hanging, refusing)[n % 2]}/dead-{n:05d}.png" for n in range(DEAD_LINES)]
        for name, title, urls in (
            ("dead-hosts-none", f"{len(good)} images of 20 good hosts", good),
            ("dead-hosts", f"{len(dead)} lines of two dead hosts before {len(good)} of 20 good hosts", dead + good),
        ):
            path, limit = bench.write_list(name, urls), bench.limit
            concurrency, peers = DEFAULT_CONCURRENCY_OF_MANY_HOSTS, AT_ONCE_PEERS
            yield Scenario(name, title, path, len(urls), limit, originals, concurrency, peers=peers)


def list_fresh(bench: Bench) -> Iterator[Scenario]:
    """Show what a line costs that needs nothing; wget2 stands for the peers, most of which need hours to get there."""
    for length in bench.list_lengths:
        urls = (bench.server.url(bench.many(n)) for n in range(length))
        name, title = f"list-fresh-{length}", f"a list of {length} lines, all fresh"
        path = bench.write_list(name, urls)
        yield Scenario(name, title, path, length, bench.list_limit, again=True, peers=("wget2",))


def list_refused(bench: Bench) -> Iterator[Scenario]:
    """Show what a line costs whose host refuses each connection."""
    with refusing_host() as host:
        for length in bench.list_lengths:
            name, title = f"list-refused-{length}", f"a list of {length} lines, all refused"
            path = bench.write_list(name, (f"http://{host}/{n:07d}.png" for n in range(length)))
            yield Scenario(name, title, path, length, bench.list_limit, peers=LIST_PEERS)


def list_of_one(bench: Bench) -> Iterator[Scenario]:
    """Show what starting and ending cost."""
    yield bench.download("list-of-one", "start to end of a list of one", bench.small[:1])


def tls_one(bench: Bench) -> Iterator[Scenario]:
    """Show what TLS adds where a few connections carry all."""
    urls = bench.write_list("tls-one", (bench.server.tls_url(_path(original)) for original in bench.small))
    title = f"first download, one host over TLS: {len(bench.small)} images"
    yield Scenario(
        "tls-one", title, urls, len(bench.small), bench.limit, bench.small, peers=WIDE_PEERS, authority=bench.authority
    )


def wide(bench: Bench) -> Iterator[Scenario]:
    """Show what a host costs: each image from another one, over TLS."""
    with resolver(bench.directory, {WIDE: TLS_HOST}) as enter:
        title = f"{len(bench.small)} hosts over TLS, an image each"
        yield replace(_hosts(bench, "wide", title, bench.small), peers=WIDE_PEERS, enter=enter)


def wide_50(bench: Bench) -> Iterator[Scenario]:
    """Show the same at the latency of a near server."""
    with resolver(bench.directory, {WIDE: TLS_HOST}) as enter:
        title = f"{len(bench.small)} hosts over TLS, an image each, 50 ms to the first byte"
        yield replace(_hosts(bench, "wide-50", title, bench.small, "50ms/"), enter=enter)


def wide_memory(bench: Bench) -> Iterator[Scenario]:
    """Show whether memory grows with the hosts: ours alone, images of 100 bytes over TLS, lists of the same length."""
    lines = bench.images * 20
    with resolver(bench.directory, {WIDE: TLS_HOST}) as enter:
        for hosts in (bench.images // 5, lines):
            names = (f"h{n % hosts:05d}.{WIDE}" for n in range(lines))
            urls = (bench.server.tls_url(bench.many(n), name) for n, name in enumerate(names))
            path = bench.write_list(f"wide-memory-{hosts}", urls)
            title = f"memory with {hosts} hosts, {lines} images"
            scenario = Scenario(f"wide-memory-{hosts}", title, path, lines, bench.wide_limit)
            yield replace(scenario, peers=(), authority=bench.authority, enter=enter)


def dead(bench: Bench) -> Iterator[Scenario]:
    """Show whether dead hosts hold up live ones: first the live ones alone, for comparison."""
    live, silent = bench.small[: bench.images * 2 // 5], SILENT_HOSTS[: bench.images // 25]
    unknown = [f"u{n:05d}.unknown.test" for n in range(bench.images // 50)]
    names = {f"s{n:05d}.silent.test": address for n, address in enumerate(silent)}
    without = _hosts(bench, "dead-none", f"{len(live)} live hosts over TLS, an image each", live)
    lines = without.urls.read_text().splitlines()
    lines += [bench.server.tls_url(f"{host.partition('.')[0]}.png", host) for host in (*names, *unknown)]
    random.Random(0).shuffle(lines)
    title = (
        f"{len(live)} live hosts shuffled with {len(silent)} that swallow every SYN and {len(unknown)} unknown names"
    )
    urls = bench.write_list("dead", lines)
    mixed = replace(without, name="dead", title=title, urls=urls, lines=len(lines), limit=bench.list_limit, tries=1)
    with (
        resolver(bench.directory, {WIDE: TLS_HOST, **names}) as enter,
        hanging_hosts(silent, bench.server.port),
    ):
        for scenario in (without, mixed):
            yield replace(scenario, enter=enter)


def _hosts(bench: Bench, name: str, title: str, originals: tuple[Path, ...], prefix: str = "") -> Scenario:
    """Make a scenario in which each image comes from a host of its own."""
    urls = bench.write_list(
        name,
        (bench.server.tls_url(prefix + _path(original), f"h{original.stem}.{WIDE}") for original in originals),
    )
    concurrency, peers = DEFAULT_CONCURRENCY_OF_MANY_HOSTS, FAR_PEERS
    scenario = Scenario(name, title, urls, len(originals), bench.limit, originals, concurrency, peers=peers)
    return replace(scenario, unit="host", authority=bench.authority)


def _path(original: Path) -> str:
    return f"{original.parent.name}/{original.name}"


def _at_once(scenario: Scenario, latency: float) -> Scenario:
    ideal = scenario.lines / AT_ONCE * latency
    return replace(scenario, concurrency=AT_ONCE, options=AT_ONCE_OPTIONS, ideal=ideal, peers=AT_ONCE_PEERS)


def _change_one_percent(originals: tuple[Path, ...], number: int) -> None:
    modified = FIRST_MODIFIED + (number + 1) * DAY
    for original in originals[number % 100 :: 100]:
        write_image(original, 20 * KIB, random.Random(f"{original.name} {number}"), modified)


SCENARIOS: dict[str, Callable[[Bench], Iterator[Scenario]]] = {
    "first-small": first_small,
    "first-large": first_large,
    "latency-50": latency_50,
    "latency-200": latency_200,
    "hosts-40": hosts_40,
    "hosts-8": hosts_8,
    "verify": verify,
    "again-304": again_304,
    "again-304-near": again_304_near,
    "again-fresh": again_fresh,
    "again-changed": again_changed,
    "dead-hosts": dead_hosts,
    "list-fresh": list_fresh,
    "list-refused": list_refused,
    "list-of-one": list_of_one,
    "tls-one": tls_one,
    "wide": wide,
    "wide-50": wide_50,
    "wide-memory": wide_memory,
    "dead": dead,
}
