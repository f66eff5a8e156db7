"""The settings of a run: one field with its entry for each option, and one field for each constant.

The parser, its help, the manual page, the completions and the checks are made from the entries. Tests hold the keywords
of ``load`` and the README against them. The defaults are the constants at the top of ``loader.py``.
"""

# No annotation is a string here: see ``model``.
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from image_loader.errors import OptionError
from image_loader.model import Columns, Layout
from image_loader.option import (
    Address,
    Choice,
    Column,
    Count,
    Flag,
    Headers,
    HeaderText,
    Limit,
    Name,
    Option,
    Seconds,
    Size,
    Statuses,
    Switch,
    Whole,
    entry,
)

# The headings of --help. No enum: it would take as long to make as all the kinds below.
ARGUMENTS = "arguments"
IMAGES = "which images"
LIMITS = "limits"
REQUESTS = "requests"
FILES = "files"
OUTPUT = "output"


class Settings(NamedTuple):
    """The constants, which have the same names in ``loader.py``, then the options, each with its entry as its default.

    Times are in seconds, sizes in bytes.
    """

    max_pixels: int
    decoding_memory: int
    decoding_time: int
    window: int
    window_size: int
    window_hosts: int
    batch: int
    chunk: int
    pool_hosts: int
    connects: int
    host_failures: int
    host_patience: float
    backoff_cap: float
    retry_after_cap: float
    redirects: int
    flush_interval: float
    partitions: int
    # The upper limits: a pool makes room for all its connections at once; a socket's timeout has 31 bits of
    # milliseconds (CPython 3.11); a thread can wait for 292 years at most.
    directory: Path = entry(
        "DIRECTORY",
        Name("DIRECTORY", required=True, advice="; the list comes first, then the directory"),
        ARGUMENTS,
        "where to put the images; created if missing",
    )
    url_column: str | None = entry(
        "--url-column",
        Column(),
        IMAGES,
        "URLFILE is a table (CSV or TSV) with the URLs in this column, given by its heading or its number from 1",
    )
    name_column: str | None = entry(
        "--name-column",
        Column(),
        IMAGES,
        "take each file name from this column of the table; folders may be part of it",
    )
    force: bool = entry("-f --force", Flag(), IMAGES, "download every image, whether it has changed or not")
    revalidate: bool = entry(
        "--revalidate",
        Flag(),
        IMAGES,
        "ask the server about every image, even if its headers say that it is still fresh",
    )
    skip_existing: bool = entry(
        "--skip-existing",
        Flag(),
        IMAGES,
        "skip images that are there, whatever their headers say; files that were edited or cut are fetched again",
    )
    ignore_status: frozenset[int] = entry(
        "--ignore-status",
        Statuses(),
        IMAGES,
        "count answers with these HTTP statuses, such as 404,410, as skipped instead of failed",
    )
    delete: bool = entry(
        "--delete", Flag(), IMAGES, "delete images that are no longer in the list, after a run that read all of it"
    )
    max_delete: int | None = entry(
        "--max-delete",
        Limit(0, 10**9, "half of the images"),
        IMAGES,
        "delete nothing if more than N images would be deleted",
    )
    dry_run: bool = entry(
        "--dry-run",
        Flag(),
        IMAGES,
        "send no request and change nothing; log what would be asked for, what is fresh, and what would be deleted",
    )
    sniff: bool = entry(
        "--sniff",
        Flag(),
        IMAGES,
        "where Content-Type is missing or says nothing, decide by the first bytes (--verify implies it)",
    )
    verify: bool = entry(
        "--verify",
        Flag(),
        IMAGES,
        "decode each image that is downloaded, refuse damaged ones (needs the extra 'verify')",
    )
    max_size: int = entry("--max-size", Size(1, 10**12), IMAGES, "largest image to accept")
    processes: int = entry(
        "--processes", Whole(1, 1000), LIMITS, "processes to download in; each host is handled by one of them"
    )
    cluster: str | None = entry(
        "--cluster",
        Address(),
        LIMITS,
        "download on the workers of a Dask scheduler, given by its address or file (needs the extra 'cluster')",
    )
    threads: int = entry("-t --threads", Whole(1, 10**5), LIMITS, "downloads at once")
    per_host: int = entry("--per-host", Whole(1, 10**5), LIMITS, "downloads at once from one host")
    delay: float = entry("--delay", Seconds(0, 10**6), LIMITS, "time between the starts of two requests to one host")
    timeout: float = entry("--timeout", Seconds(0.001, 10**6), LIMITS, "time limit to connect, and between two bytes")
    max_time: float = entry("--max-time", Seconds(0.001, 10**9), LIMITS, "time limit for one attempt at one image")
    retries: int = entry("--retries", Whole(0, 10**9), LIMITS, "retries of an image after a transient failure")
    headers: Mapping[str, str] = entry(
        "-H --header",
        Headers(),
        REQUESTS,
        "header to send with each request, as 'Name: value', or @FILE with one header a line; may be repeated",
        "headers",
    )
    user_agent: str = entry("-A --user-agent", HeaderText(), REQUESTS, "User-Agent header to send")
    ca_bundle: str | None = entry(
        "--ca-bundle", Name("FILE", str), REQUESTS, "CA certificates for HTTPS (file or directory)"
    )
    insecure: bool = entry("--insecure", Flag(), REQUESTS, "do not check TLS certificates")
    public_only: bool = entry("--public-only", Flag(), REQUESTS, "refuse private, loopback and link-local addresses")
    layout: Layout = entry(
        "--layout",
        Choice(Layout),
        FILES,
        "path of an image below DIRECTORY: flat (name), host (host/name), hash (ab/cd/name), path (host/dir/name)",
    )
    index_file: Path | None = entry(
        "--index",
        Name(),
        FILES,
        "where to store what is known of each image (default: DIRECTORY/.image_loader/index.sqlite3)",
    )
    one_processor: bool = False
    """Whether this process stays on one processor once it downloads."""
    exclusive: bool = False
    """Whether no other run may have the index meanwhile."""

    def __repr__(self) -> str:
        """Show no more than the directory: the headers may be secret."""
        return f"<settings for {self.directory}>"

    @property
    def columns(self) -> Columns | None:
        """What to read of a table; None where the list is none."""
        return None if self.url_column is None else Columns(self.url_column, self.name_column)


class Command(NamedTuple):
    """A command line: the options of the command alone, and those of the run by their keywords (``settings``)."""

    settings: Mapping[str, Any]
    urls: str = entry(
        "URLFILE",
        Name("URLFILE", str, required=True, advice="; pipe it in: echo URL | loader - DIRECTORY"),
        ARGUMENTS,
        "list of image URLs, one a line, plain or gzip; '-' is standard input",
        "urls",
    )
    results: str | None = entry(
        "--results",
        Name("FILE", str),
        FILES,
        "write one row per URL to a .jsonl or .csv file; '-' is JSON lines on standard output",
    )
    failed: Path | None = entry("--failed", Name(), FILES, "write the URLs that failed: a list for the next run")
    report: Path | None = entry(
        "--report", Name(), FILES, "write a web page about the run to an .html file (needs the extra 'report')"
    )
    verbose: int = entry("-v --verbose", Count(), OUTPUT, "log each image; -vv: log each decision, too", default=0)
    quiet: bool = entry("-q --quiet", Flag(), OUTPUT, "log only errors that end the run", default=False)
    progress: bool | None = entry("--progress", Switch(), OUTPUT, "show a progress bar (default: at a terminal)")


@functools.cache
def options(owner: type[Settings] | type[Command]) -> Mapping[str, Option]:
    """Return the entries of the options by their fields."""
    return {field: default for field, default in owner._field_defaults.items() if isinstance(default, Option)}


def settings_from(values: Mapping[str, Any], constants: Mapping[str, Any]) -> Settings:
    """Put checked options, given by their keywords, and constants together; raise ``OptionError``."""
    checked = {field: option.checked(values[option.keyword]) for field, option in options(Settings).items()}
    settings = Settings(**checked, **constants)
    if settings.ca_bundle is not None and not os.path.exists(settings.ca_bundle):  # noqa: PTH110 (Path's raises)
        raise OptionError(f"{settings.ca_bundle}: no such file or directory", "ca_bundle")
    if settings.name_column is not None and settings.url_column is None:
        raise OptionError("can only be used with --url-column (url_column)", "name_column")
    if settings.skip_existing and (settings.force or settings.revalidate):
        raise OptionError("cannot be used with --force or --revalidate (force, revalidate)", "skip_existing")
    if settings.max_delete is not None and not settings.delete:
        raise OptionError("can only be used with --delete (delete)", "max_delete")
    if settings.cluster is not None:
        _check_cluster(settings)
    return settings


def _check_cluster(settings: Settings) -> None:
    """Raise ``OptionError`` for what a run on a cluster cannot do."""
    if settings.index_file is not None:
        raise OptionError("cannot be used with --cluster (cluster): each part of the hosts has its own index", "index")
    if settings.processes > 1:
        raise OptionError("cannot be used with --cluster (cluster): its workers are processes", "processes")
    for keyword in ("delete", "dry_run"):
        if getattr(settings, keyword):
            raise OptionError("cannot be used with --cluster (cluster)", keyword)


@functools.cache
def all_options() -> Sequence[Option]:
    """Return the entries of all options, those of a run first."""
    return (*options(Settings).values(), *options(Command).values())
