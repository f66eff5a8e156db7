"""What people write: a ThreadPoolExecutor over ``requests.Session.get``, asking again by the file's time."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

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
    with requests.Session() as session, ThreadPoolExecutor(options.threads) as pool:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=options.threads))
        session.verify = options.ca_bundle or session.verify
        lines = options.urls.read_text().split()
        futures = [pool.submit(download, session, url, options.directory / url.rpartition("/")[2]) for url in lines]
        failures = sum(future.exception() is not None for future in futures)
    raise SystemExit(failures > 0)


def download(session: requests.Session, url: str, path: Path) -> None:
    """Download one image, unless the server says that the file is current."""
    headers = {"If-Modified-Since": formatdate(path.stat().st_mtime, usegmt=True)} if path.exists() else {}
    response = session.get(url, headers=headers, timeout=TIMEOUT)
    response.raise_for_status()
    if response.status_code == requests.codes.not_modified:
        return
    path.write_bytes(response.content)
    modified = parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()
    os.utime(path, (modified, modified))


if __name__ == "__main__":
    main()
