"""The settings of a run: one field with its entry for each option, and one field for each constant.

The parser, its help, the manual page, the completions and the checks are made from the entries. Tests hold the keywords
of ``load`` and the README against them. The defaults are the constants at the top of ``loader.py``.
"""

# No annotation is a string here, so that reading the entries takes no evaluation: that would cost a millisecond.
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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
)

# The headings of --help. No enum: it would take as long to make as all the kinds below.
ARGUMENTS = "arguments"
IMAGES = "which images"
LIMITS = "limits"
REQUESTS = "requests"
FILES = "files"
OUTPUT = "output"


class Settings(NamedTuple):
    """The options, then the constants, which have the same names in ``loader.py``.

    Times are in seconds, sizes in bytes.
    """

    # The upper limits: a pool makes room for all its connections at once; a socket's timeout has 31 bits of
    # milliseconds (CPython 3.11); a thread can wait for 292 years at most.
    directory: Annotated[
        Path,
        Option(
            "DIRECTORY",
            Name("DIRECTORY", required=True, advice="; the list comes first, then the directory"),
            ARGUMENTS,
            "where to put the images; created if missing",
        ),
    ]
    url_column: Annotated[
        str | None,
        Option(
            "--url-column",
            Column(),
            IMAGES,
            "URLFILE is a table (CSV or TSV) with the URLs in this column, given by its heading or its number from 1",
        ),
    ]
    name_column: Annotated[
        str | None,
        Option(
            "--name-column",
            Column(),
            IMAGES,
            "take each file name from this column of the table; folders may be part of it",
        ),
    ]
    force: Annotated[bool, Option("-f --force", Flag(), IMAGES, "download every image, whether it has changed or not")]
    revalidate: Annotated[
        bool,
        Option(
            "--revalidate",
            Flag(),
            IMAGES,
            "ask the server about every image, even if its headers say that it is still fresh",
        ),
    ]
    skip_existing: Annotated[
        bool,
        Option(
            "--skip-existing",
            Flag(),
            IMAGES,
            "skip images that are there, whatever their headers say; files that were edited or cut are fetched again",
        ),
    ]
    ignore_status: Annotated[
        frozenset[int],
        Option(
            "--ignore-status",
            Statuses(),
            IMAGES,
            "count answers with these HTTP statuses, such as 404,410, as skipped instead of failed",
        ),
    ]
    delete: Annotated[
        bool,
        Option(
            "--delete",
            Flag(),
            IMAGES,
            "delete images that are no longer in the list, after a run that read all of it",
        ),
    ]
    max_delete: Annotated[
        int | None,
        Option(
            "--max-delete",
            Limit(0, 10**9, "half of the images"),
            IMAGES,
            "delete nothing if more than N images would be deleted",
        ),
    ]
    dry_run: Annotated[
        bool,
        Option(
            "--dry-run",
            Flag(),
            IMAGES,
            "send no request and change nothing; log what would be asked for, what is fresh, and what would be deleted",
        ),
    ]
    sniff: Annotated[
        bool,
        Option(
            "--sniff",
            Flag(),
            IMAGES,
            "where Content-Type is missing or says nothing, decide by the first bytes (--verify implies it)",
        ),
    ]
    verify: Annotated[
        bool, Option("--verify", Flag(), IMAGES, "decode each image and refuse damaged ones (needs the extra 'verify')")
    ]
    max_size: Annotated[int, Option("--max-size", Size(1, 10**12), IMAGES, "largest image to accept")]
    processes: Annotated[
        int,
        Option("--processes", Whole(1, 1000), LIMITS, "processes to download in; each host is handled by one of them"),
    ]
    cluster: Annotated[
        str | None,
        Option(
            "--cluster",
            Address(),
            LIMITS,
            "download on the workers of a Dask scheduler, given by its address or file (needs the extra 'cluster')",
        ),
    ]
    threads: Annotated[int, Option("-t --threads", Whole(1, 10**5), LIMITS, "downloads at once")]
    per_host: Annotated[int, Option("--per-host", Whole(1, 10**5), LIMITS, "downloads at once from one host")]
    delay: Annotated[
        float,
        Option("--delay", Seconds(0, 10**6), LIMITS, "time between the starts of two requests to one host"),
    ]
    timeout: Annotated[
        float, Option("--timeout", Seconds(0.001, 10**6), LIMITS, "time limit to connect, and between two bytes")
    ]
    max_time: Annotated[
        float, Option("--max-time", Seconds(0.001, 10**9), LIMITS, "time limit for one attempt at one image")
    ]
    retries: Annotated[
        int, Option("--retries", Whole(0, 10**9), LIMITS, "retries of an image after a transient failure")
    ]
    headers: Annotated[
        Mapping[str, str],
        Option(
            "-H --header",
            Headers(),
            REQUESTS,
            "header to send with each request, as 'Name: value', or @FILE with one header a line; may be repeated",
            "headers",
        ),
    ]
    user_agent: Annotated[str, Option("-A --user-agent", HeaderText(), REQUESTS, "User-Agent header to send")]
    ca_bundle: Annotated[
        str | None, Option("--ca-bundle", Name("FILE", str), REQUESTS, "CA certificates for HTTPS (file or directory)")
    ]
    insecure: Annotated[bool, Option("--insecure", Flag(), REQUESTS, "do not check TLS certificates")]
    public_only: Annotated[
        bool, Option("--public-only", Flag(), REQUESTS, "refuse private, loopback and link-local addresses")
    ]
    layout: Annotated[
        Layout,
        Option(
            "--layout",
            Choice(Layout),
            FILES,
            "path of an image below DIRECTORY: flat (name), host (host/name), hash (ab/cd/name), path (host/dir/name)",
        ),
    ]
    index_file: Annotated[
        Path | None,
        Option(
            "--index",
            Name(),
            FILES,
            "where to store what is known of each image (default: DIRECTORY/.image_loader/index.sqlite3)",
        ),
    ]
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
    one_processor: bool = False
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
    urls: Annotated[
        str,
        Option(
            "URLFILE",
            Name("URLFILE", str, required=True, advice="; pipe it in: echo URL | loader - DIRECTORY"),
            ARGUMENTS,
            "list of image URLs, one a line, plain or gzip; '-' is standard input",
            "urls",
        ),
    ]
    results: Annotated[
        str | None,
        Option(
            "--results",
            Name("FILE", str),
            FILES,
            "write one row per URL to a .jsonl or .csv file; '-' is JSON lines on standard output",
        ),
    ] = None
    failed: Annotated[
        Path | None, Option("--failed", Name(), FILES, "write the URLs that failed: a list for the next run")
    ] = None
    report: Annotated[
        Path | None,
        Option("--report", Name(), FILES, "write a web page about the run to an .html file (needs the extra 'report')"),
    ] = None
    verbose: Annotated[int, Option("-v --verbose", Count(), OUTPUT, "log each image; -vv: log each decision, too")] = 0
    quiet: Annotated[bool, Option("-q --quiet", Flag(), OUTPUT, "log only errors that end the run")] = False
    progress: Annotated[
        bool | None, Option("--progress", Switch(), OUTPUT, "show a progress bar (default: at a terminal)")
    ] = None


@functools.cache
def options(owner: type[Settings] | type[Command]) -> Mapping[str, Option]:
    """Return the entries of the options by their fields."""
    marked = ((field, getattr(hint, "__metadata__", ())) for field, hint in owner.__annotations__.items())
    return {field: metadata[0] for field, metadata in marked if metadata}


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
