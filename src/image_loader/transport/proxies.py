"""Proxies: what their URLs say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import requests
import urllib3
from urllib3.util import parse_url

from image_loader.errors import DownloadError
from image_loader.model import Reason

_PORTS = {"http": 80, "https": 443}


class Proxy(NamedTuple):
    """A proxy: how it is spoken to (``http`` or ``https``), where it is, and the fields that it wants."""

    scheme: str
    host: str
    port: int
    headers: Mapping[str, str]

    @property
    def name(self) -> str:
        """Host and port, as failures name them."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its URL without user and password."""
        return f"{self.scheme}://{self.host}:{self.port}"


def parse(text: str) -> Proxy:
    """Return the proxy that an environment variable names; ``DownloadError`` if its URL cannot be used."""
    if re.match("(?i)socks[^:/]*://", text):
        raise DownloadError(Reason.CONNECT, "SOCKS proxies are not supported; name an HTTP proxy, or unset ALL_PROXY")
    try:
        url = text if "://" in text else f"http://{text.removeprefix('//')}"
        headers = requests.adapters.HTTPAdapter().proxy_headers(url)
        parsed = parse_url(url)
        scheme, host = str(parsed.scheme), parsed.host
        usual_port = _PORTS[scheme]
        if not host:
            raise ValueError("no host")
    except (OSError, urllib3.exceptions.HTTPError, KeyError, ValueError, TypeError) as error:
        # The URL may hold a password.
        raise DownloadError(Reason.CONNECT, "the proxy's URL cannot be used; write it like http://host:3128") from error
    return Proxy(scheme, host, parsed.port or usual_port, headers)
