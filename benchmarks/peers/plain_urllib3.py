"""The same as ``plain_requests.py`` one floor down: a ThreadPoolExecutor over urllib3's ``PoolManager``."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path

import urllib3

TIMEOUT = 10.0  # seconds


def main() -> None:
    """Download each URL of the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("--ca-bundle")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    pools = urllib3.PoolManager(maxsize=options.threads, ca_certs=options.ca_bundle)
    with pools as manager, ThreadPoolExecutor(options.threads) as pool:
        lines = options.urls.read_text().split()
        futures = [pool.submit(download, manager, url, options.directory / url.rpartition("/")[2]) for url in lines]
        failures = sum(future.exception() is not None for future in futures)
    raise SystemExit(failures > 0)


def download(manager: urllib3.PoolManager, url: str, path: Path) -> None:
    """Download one image, unless the server says that the file is current."""
    headers = {"If-Modified-Since": formatdate(path.stat().st_mtime, usegmt=True)} if path.exists() else {}
    response = manager.request("GET", url, headers=headers, timeout=TIMEOUT, retries=False)
    if response.status == HTTPStatus.NOT_MODIFIED:
        return
    if response.status != HTTPStatus.OK:
        raise OSError(f"{url}: {response.status}")
    path.write_bytes(response.data)
    modified = parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()
    os.utime(path, (modified, modified))


if __name__ == "__main__":
    main()
