"""What errors of sockets, TLS and proxies mean: each becomes a ``DownloadError`` that people understand."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING

from image_loader.errors import DownloadError, is_out_of_descriptors
from image_loader.model import Blame, Reason
from image_loader.transport.response import is_torn

if TYPE_CHECKING:
    from image_loader.transport.proxies import Proxy

PROXY_LOGIN = "; put user and password into the proxy's URL (http://user:password@host:port)"
"""What to do where a proxy answers 407."""
_OLD_PROTOCOL = (
    "the server offers only versions of TLS that this Python's OpenSSL refuses (1.2 is the oldest accepted); "
    "the server needs an update"
)
_NO_CIPHER = (
    "the server and this Python's OpenSSL have no cipher or TLS version in common; "
    "the server probably offers only old ones, which OpenSSL refuses"
)
_WEAK = "this Python's OpenSSL refuses the server's {}; its operator has to replace it"
_NO_TLS = "the server does not speak TLS on this port; check port and scheme (http://?)"
_CAUSES = {
    "UNSUPPORTED_PROTOCOL": _OLD_PROTOCOL,
    "TLSV1_ALERT_PROTOCOL_VERSION": _OLD_PROTOCOL,
    "WRONG_SSL_VERSION": _OLD_PROTOCOL,
    "VERSION_TOO_LOW": _OLD_PROTOCOL,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _NO_CIPHER,
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": _NO_CIPHER,
    "NO_CIPHERS_AVAILABLE": _NO_CIPHER,
    "WRONG_CIPHER_RETURNED": _NO_CIPHER,
    "UNKNOWN_CIPHER_RETURNED": _NO_CIPHER,
    "WRONG_SIGNATURE_TYPE": _WEAK.format("old signature algorithm"),
    "DH_KEY_TOO_SMALL": _WEAK.format("Diffie-Hellman key, which is too short"),
    "EE_KEY_TOO_SMALL": _WEAK.format("certificate, whose key is too short"),
    "CA_KEY_TOO_SMALL": _WEAK.format("certificate, whose issuer has a key that is too short"),
    "CA_MD_TOO_WEAK": _WEAK.format("certificate, whose signature is too weak"),
    "UNSAFE_LEGACY_RENEGOTIATION_DISABLED": _WEAK.format("old way to renegotiate (RFC 5746 is missing)"),
    "TLSV1_ALERT_UNRECOGNIZED_NAME": "the server does not know the host name that it was asked for",
    "TLSV1_UNRECOGNIZED_NAME": "the server does not know the host name that it was asked for",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a client certificate, which is not supported",
    "TLSV1_ALERT_INTERNAL_ERROR": "the server reports an internal error; it may have no certificate for this host name",
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
}
# An error within the server, or bytes that were changed on the way; neither side has to be set up anew (RFC 8446, 6).
_PASSING = frozenset({"TLSV1_ALERT_INTERNAL_ERROR", "TLSV1_ALERT_USER_CANCELLED", "SSLV3_ALERT_BAD_RECORD_MAC",
                      "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"})  # fmt: skip
# What is no TLS: in a handshake, most likely the wrong port; after it, of somebody in between.
_GARBLED = frozenset(code for code, cause in _CAUSES.items() if cause is _NO_TLS)
_UNKNOWN = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
# X509_V_ERR_…: no trusted authority has issued the certificate.
_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})


def connect_error(error: OSError) -> DownloadError:
    """Say why there is no connection."""
    if isinstance(error, TimeoutError):
        return DownloadError(Reason.TIMEOUT, "no connection within the timeout", retryable=True, blame=Blame.HOST)
    blame = Blame.PROCESS if is_out_of_descriptors(error) else Blame.HOST
    return DownloadError(Reason.CONNECT, error.strerror or str(error), retryable=True, blame=blame)


def no_address() -> DownloadError:
    """Say that a look-up brought no address to connect to."""
    return DownloadError(Reason.CONNECT, "the name has no address", retryable=True, blame=Blame.HOST)


def copied(error: DownloadError, place: str = "") -> DownloadError:
    """Return a copy of an error that several attempts share, with ``place`` before its detail."""
    failure = error.failure
    if place:
        failure = failure._replace(detail=f"{place}: {failure.detail}")
    copy = DownloadError(failure.reason, failure.detail)
    copy.failure = failure
    return copy


def at_proxy(proxy: Proxy | None, error: DownloadError) -> DownloadError:
    """Return the error with the name of the proxy that it happened at, if there is one."""
    return error if proxy is None else copied(error, f"the proxy {proxy.name}")


def unknown_name(error: BaseException | None) -> DownloadError:
    """Say that a look-up failed.

    A name that does not exist now will not exist in some seconds; a resolver that failed may have recovered.
    """
    detail = getattr(error, "strerror", None) or "unknown name"
    retryable = getattr(error, "errno", None) not in _UNKNOWN
    return DownloadError(Reason.DNS, detail, retryable=retryable, blame=Blame.HOST)


def lost(detail: str = "the server closed the connection without an answer") -> DownloadError:
    """Say that a connection ended before there was an answer."""
    return DownloadError(Reason.CONNECT, detail, retryable=True, blame=Blame.HOST)


def handshake_error(error: OSError | ValueError) -> DownloadError:
    """Say why there was no TLS handshake: what TLS objects to is final, a connection lost on the way is not."""
    if isinstance(error, TimeoutError):
        detail = "no TLS handshake within the timeout"
        return DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.HOST)
    if not isinstance(error, OSError):
        return DownloadError(Reason.BAD_URL, "bad host name")
    # Python up to 3.12 raises an OSError without a number where the connection ends within a handshake.
    if isinstance(error, (ssl.SSLZeroReturnError, ConnectionError)) or error.errno in (0, errno.ENOTCONN):
        return lost("the server closed the connection during the TLS handshake")
    if not isinstance(error, ssl.SSLError):
        return connect_error(error)
    return lost("the server closed the connection during the TLS handshake") if is_torn(error) else tls_error(error)


def tls_error(error: ssl.SSLError) -> DownloadError:
    """Say what TLS objects to, and what could be done; most often, another attempt changes nothing."""
    passing = error.reason in _PASSING
    return DownloadError(Reason.TLS, _detail(error), retryable=passing, blame=Blame.HOST if passing else Blame.IMAGE)


def _detail(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "; --ca-bundle names the authorities to trust" if error.verify_code in _UNKNOWN_ISSUER else ""
        return f"the certificate is not trusted: {error.verify_message}{advice}"
    reason = error.reason or "TLS failed"
    return _CAUSES.get(reason, reason.lower().replace("_", " "))


def exchange_error(error: Exception, *, answered: bool) -> DownloadError:
    """Say why an exchange failed; ``answered`` once a response has begun."""
    if isinstance(error, TimeoutError):
        detail = "nothing more came within the timeout" if answered else "no answer within the timeout"
        return DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.IMAGE if answered else Blame.HOST)
    if isinstance(error, ssl.SSLError) and error.reason in _GARBLED:
        detail = "the server went on without TLS"
        return DownloadError(Reason.TRUNCATED, detail, retryable=True) if answered else lost(detail)
    if isinstance(error, OSError) and answered:
        detail = _detail(error) if isinstance(error, ssl.SSLError) else error.strerror or str(error)
        return DownloadError(Reason.TRUNCATED, detail, retryable=True)
    if isinstance(error, ssl.SSLError):
        return tls_error(error)
    if isinstance(error, OSError):
        return connect_error(error)
    return DownloadError(Reason.PROTOCOL, f"not understood: {type(error).__name__}")
