"""TLS: which certificates are trusted, and which bodies are whole."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import struct
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from urllib3.util import create_urllib3_context

from asking import BODY, CHUNKS, get, refusal, transport
from exchange import PNG, End, head, length, whole
from image_loader.errors import OptionError
from image_loader.model import Blame, Reason
from image_loader.transport import tls as tls_module
from server import Scripted, Server, plays

pytestmark = pytest.mark.usefixtures("own_environment")


def test_an_error_of_tls_is_final(tls: ssl.SSLContext) -> None:
    with transport() as asking, Server(tls=tls) as secure, Server() as plain:
        untrusted = refusal(asking, secure.url("/a"))
        no_tls = refusal(asking, f"https://127.0.0.1:{plain.port}/a")
    for failure in (untrusted, no_tls):
        assert (failure.reason, failure.retryable) == (Reason.TLS, False)
    assert "not trusted" in untrusted.detail
    assert secure.requests == plain.requests == []


def test_the_name_in_the_certificate_has_to_be_that_of_the_url(authority: trustme.CA, bundle: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with transport(ca_bundle=bundle) as asking, Server(tls=context) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.TLS
        assert get(asking, f"https://localhost:{server.port}/a").status == 200


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environment_says_whom_to_trust(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, bundle)
    with transport() as asking, Server(tls=tls) as server:
        assert get(asking, server.url("/a")).status == 200


def test_an_option_goes_before_the_environment(
    tls: ssl.SSLContext, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with Server(tls=tls) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        with transport() as asking:
            assert refusal(asking, server.url("/a")).reason is Reason.TLS
        with transport(ca_bundle=bundle) as asking:
            assert get(asking, server.url("/a")).status == 200
        with transport(insecure=True) as asking:
            assert get(asking, server.url("/a")).status == 200
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with transport(ca_bundle=str(other)) as asking:
            assert refusal(asking, server.url("/a")).reason is Reason.TLS


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_a_file_of_certificates_that_is_none_ends_the_run(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "none.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with transport() as asking, Server(tls=tls) as server, pytest.raises(OptionError, match=re.escape(str(path))):
        get(asking, server.url("/a"))


def test_keys_that_cannot_be_logged_end_the_run_in_plain_words(
    tls: ssl.SSLContext, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copy(bundle, tmp_path / "never-read-before.pem")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    with (
        Server(tls=tls) as server,
        pytest.raises(OptionError, match="SSLKEYLOGFILE"),
        transport(ca_bundle=own) as asking,
    ):
        get(asking, server.url("/a"))


def test_an_option_that_names_no_certificates_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "none.pem").touch()
    before = set(threading.enumerate())
    with pytest.raises(OptionError, match=r"none\.pem"):
        transport(ca_bundle=str(tmp_path / "none.pem"))
    assert set(threading.enumerate()) <= before


def test_an_unframed_body_within_tls_is_whole_only_after_close_notify(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9112, 9.8: whoever stands in between could cut it short by closing the connection."""

    def lenient_context() -> ssl.SSLContext:
        """Make a context as Python up to 3.11.2 makes it."""
        context = create_urllib3_context()
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        return context

    monkeypatch.setattr(tls_module, "create_urllib3_context", lenient_context)
    with transport(ca_bundle=bundle) as asking, Scripted(plays(head(PNG) + BODY, End.CLOSE), tls=tls) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)


def test_an_unframed_body_within_tls_is_whole_after_close_notify(tls: ssl.SSLContext, bundle: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            accepted.settimeout(5)
            with tls.wrap_socket(accepted, server_side=True) as secure, suppress(OSError):
                secure.recv(65536)
                secure.sendall(head(PNG) + BODY)
                secure.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        assert get(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a").body == BODY
        thread.join()


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", {Reason.CONNECT}),
        (b"HTTP/1.1 20", {Reason.PROTOCOL}),
        (head(PNG, length(BODY))[:-9], {Reason.PROTOCOL}),
        (whole(BODY)[:-9], {Reason.TRUNCATED}),
        (head(PNG, "Transfer-Encoding: chunked") + CHUNKS[:-5], {Reason.TRUNCATED}),
        (head(PNG, "Transfer-Encoding: chunked") + CHUNKS[:-2], {Reason.TRUNCATED}),
    ],
)
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_a_connection_lost_within_tls_is_no_error_of_tls(
    tls: ssl.SSLContext, bundle: str, data: bytes, reasons: set[Reason], end: End
) -> None:
    with (
        transport(ca_bundle=bundle) as asking,
        Scripted(plays(*([data, 0.05] if data else []), end), tls=tls) as server,
    ):
        failure = refusal(asking, server.url("/a"))
    assert failure.reason in reasons | ({Reason.CONNECT, Reason.TRUNCATED} if end is End.RESET else set())
    assert failure.retryable


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_connection_that_is_reset_before_it_is_asked_may_be_tried_again(tls: ssl.SSLContext, bundle: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:
        thread = threading.Thread(target=lambda: _reset(tls.wrap_socket(listener.accept()[0], server_side=True)))
        thread.start()
        failure = refusal(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a", wait=0.4)
        thread.join()
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.HOST)


@pytest.mark.parametrize("secure", [False, True])
def test_an_answer_that_comes_before_the_request_was_sent_whole_is_read(
    tls: ssl.SSLContext, bundle: str, secure: bool
) -> None:
    answer = head("Content-Length: 0", "Connection: close", status="431 Request Header Fields Too Large")
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            with tls.wrap_socket(accepted, server_side=True) if secure else accepted as connection:
                connection.recv(8192)
                connection.sendall(answer)
                time.sleep(0.2)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"{'https' if secure else 'http'}://127.0.0.1:{listener.getsockname()[1]}/a"
        assert get(asking, url, {"X": "x" * 8_000_000}).status == 431
        thread.join()


def test_bytes_that_were_changed_on_the_way_cut_a_body_off(tls: ssl.SSLContext, bundle: str) -> None:
    with (
        Scripted(plays(whole(bytes(300_000))), tls=tls) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
        transport(ca_bundle=bundle) as asking,
    ):

        def change() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", server.port)) as beyond, suppress(OSError):
                threading.Thread(target=_pass_on, args=(client, beyond), daemon=True).start()
                passed = 0
                while data := bytearray(beyond.recv(65536)):
                    if passed < 150_000 <= passed + len(data) - 1:
                        data[150_000 - passed] ^= 0xFF
                    passed += len(data)
                    client.sendall(data)

        thread = threading.Thread(target=change)
        thread.start()
        failure = refusal(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a")
    thread.join()
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)
    assert "bad record mac" in failure.detail


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)


@pytest.mark.parametrize(("sent", "reason"), [(b"", Reason.CONNECT), (whole(bytes(300_000))[:1000], Reason.TRUNCATED)])
def test_a_connection_that_goes_on_without_tls_may_be_tried_again(
    tls: ssl.SSLContext, bundle: str, sent: bytes, reason: Reason
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            plain = accepted.dup()
            with plain, tls.wrap_socket(accepted, server_side=True) as secure:
                secure.recv(65536)
                secure.sendall(sent or b"")
                plain.sendall(head(status="502 Bad Gateway"))

        thread = threading.Thread(target=serve)
        thread.start()
        failure = refusal(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a")
        thread.join()
    assert (failure.reason, failure.retryable) == (reason, True)
    assert failure.detail == "the server went on without TLS"


@pytest.mark.parametrize(
    ("alert", "retryable", "text"),
    [
        (80, True, "the server reports an internal error; it may have no certificate for this host name"),
        (20, True, "bad record mac"),
        (90, True, "user cancelled"),
        (40, False, "no cipher or TLS version in common"),
    ],
)
def test_an_alert_that_says_nothing_of_either_side_may_be_tried_again(alert: int, retryable: bool, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport() as asking:

        def serve() -> None:
            with listener.accept()[0] as accepted:
                accepted.recv(65536)
                accepted.sendall(bytes([0x15, 3, 3, 0, 2, 2, alert]))
                accepted.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        failure = refusal(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a")
        thread.join()
    assert (failure.reason, failure.retryable) == (Reason.TLS, retryable)
    assert failure.blame is (Blame.HOST if retryable else Blame.IMAGE)
    assert text in failure.detail


def _old_server(authority: trustme.CA, *, versions: tuple[Any, Any] | None, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_ciphers(ciphers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if versions is not None:
            context.minimum_version, context.maximum_version = versions
    return context


@pytest.mark.parametrize(
    ("versions", "ciphers"),
    [
        ((ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1), "ALL:@SECLEVEL=0"),
        ((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2), "ECDHE-RSA-NULL-SHA:@SECLEVEL=0"),
    ],
    ids=["old versions", "old ciphers"],
)
def test_an_old_server_is_told_as_such(
    authority: trustme.CA, bundle: str, versions: tuple[Any, Any], ciphers: str
) -> None:
    old = _old_server(authority, versions=versions, ciphers=ciphers)
    with transport(ca_bundle=bundle) as asking, Server(tls=old) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.retryable) == (Reason.TLS, False)
    assert "this Python's OpenSSL" in failure.detail


def test_a_port_that_does_not_speak_tls_is_told_as_such() -> None:
    with Server() as server, transport() as asking:
        failure = refusal(asking, f"https://127.0.0.1:{server.port}/a")
    assert "does not speak TLS" in failure.detail


def test_what_to_do_about_an_unknown_authority_is_said(tls: ssl.SSLContext) -> None:
    with Server(tls=tls) as server, transport() as asking:
        assert "--ca-bundle" in refusal(asking, server.url("/a")).detail


def test_a_context_is_that_of_its_run_alone(
    tls: ssl.SSLContext, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = tmp_path / "changing.pem"
    trustme.CA().cert_pem.write_to_path(str(changing))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(changing))
    with Server(tls=tls) as server:
        with transport() as asking:
            assert refusal(asking, server.url("/a")).reason is Reason.TLS
        shutil.copy(bundle, changing)
        with transport() as asking:
            assert get(asking, server.url("/a")).status == 200


def test_http_1_1_is_named_in_the_handshake(authority: trustme.CA, bundle: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    chosen = []
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) as secure:
                chosen.append(secure.selected_alpn_protocol())
                secure.recv(65536)
                secure.sendall(whole(BODY))

        thread = threading.Thread(target=serve)
        thread.start()
        assert get(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a").body == BODY
        thread.join()
    assert chosen == ["http/1.1"]
