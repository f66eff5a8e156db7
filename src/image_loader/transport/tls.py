"""TLS: the context of a run, and the names that certificates are checked for."""

from __future__ import annotations

import ssl
from pathlib import Path

import requests
from urllib3.util import ALPN_PROTOCOLS, create_urllib3_context

from image_loader.errors import DownloadError, LoaderError, OptionError, is_out_of_descriptors
from image_loader.transport.failures import connect_error

SUPPRESS_RAGGED_EOFS = False
"""For sockets of TLS: a body that ends with the connection is whole only if the peer says so (RFC 9112, 9.8)."""


def context(verify: bool | str | None) -> ssl.SSLContext:  # noqa: FBT001 (what requests calls it)
    """Return the context for what requests calls ``verify``; loading its certificates takes some 20 ms.

    Raises ``OptionError``, and ``DownloadError`` where there are no descriptors.
    """
    try:
        made = create_urllib3_context()
    except OSError as error:
        if is_out_of_descriptors(error):
            raise connect_error(error) from error
        why = error.strerror or str(error)
        raise OptionError(f"TLS cannot be set up: {why}; SSLKEYLOGFILE, if set, must name a writable file") from error
    # Python up to 3.11.2 sets it: a connection that somebody cuts would look like one that ended well.
    made.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    made.set_alpn_protocols(ALPN_PROTOCOLS)
    if verify is False:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    else:
        _load_authorities(made, verify if isinstance(verify, str) else requests.utils.DEFAULT_CA_BUNDLE_PATH)
    return made


def context_of(bundle: str) -> ssl.SSLContext:
    """Return the context for a CA bundle that the user names; ``LoaderError`` where that cannot be read."""
    try:
        return context(bundle)
    except DownloadError as error:
        raise LoaderError(f"{bundle} cannot be read: {error.failure.detail}; see ulimit -n") from error


def _load_authorities(made: ssl.SSLContext, path: str) -> None:
    try:
        made.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
    except OSError as error:
        if is_out_of_descriptors(error):
            raise connect_error(error) from error
        raise OptionError(f"{path}: no certificates can be read from it; name another with --ca-bundle") from error


def server_hostname(host: str) -> str:
    """Return the name that a certificate is checked for, as urllib3 does: no brackets, scope or trailing dot.

    >>> [server_hostname(host) for host in ("[::1]", "[fe80::1%eth0]", "example.com.", "127.0.0.1")]
    ['::1', 'fe80::1', 'example.com', '127.0.0.1']
    """
    if host.startswith("["):
        return host.strip("[]").partition("%")[0]
    return host.rstrip(".")
