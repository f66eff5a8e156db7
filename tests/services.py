"""Real web servers, proxies and caches, each started on a free port with a configuration of its own, and ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

_STARTED_WITHIN = 60.0
_LOGGED_WITHIN = 20.0  # lighttpd writes its log every few seconds
_ANSWERED = re.compile(r"(?m)\b(?:GET|CONNECT) (\S+) HTTP/[\d.]+\"? (\d{3})\b|\[(\d{3})\]: GET (\S+)$")
"""A line of an access log, or of what PHP logs."""


class Service:
    """One server. Its files are below ``home``: the images in ``www``, the requests that it answered in ``log``."""

    def __init__(self, program: str, home: Path, configure: Callable[[Service], Sequence[str]]) -> None:
        """Start it; ``configure`` writes its configuration and returns the command."""
        if (found := shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")) is None:
            pytest.skip(f"{program} is not installed")
        self.program = found
        self.home = home
        self.www = home / "www"
        self.log = home / "access.log"
        self.port = _free_port()
        self.www.mkdir(parents=True, exist_ok=True)
        home.chmod(0o777)  # Some of them do not stay root.
        self._command = configure(self)
        self.start()

    @property
    def origin(self) -> str:
        """Scheme, address and port."""
        return f"http://127.0.0.1:{self.port}"

    def url(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self.origin}/{name}"

    def write(self, name: str, body: bytes, modified: float) -> None:
        """Put a file there, with its time."""
        path = self.www / name
        path.write_bytes(body)
        os.utime(path, (modified, modified))

    def asked(self) -> list[tuple[str, int]]:
        """Return the paths and statuses of the requests that were answered, as far as they are logged."""
        found = _ANSWERED.findall(self.log.read_text())
        return [((path or other).removeprefix(self.origin), int(status or code)) for path, status, code, other in found]

    def statuses(self, requests: int) -> Counter[int]:
        """Wait until so many requests are logged, forget them, and return how often there was each status."""
        give_up = time.monotonic() + _LOGGED_WITHIN
        while len(asked := self.asked()) < requests:
            assert time.monotonic() < give_up, asked
            time.sleep(0.05)
        os.truncate(self.log, 0)
        return Counter(status for _, status in asked)

    def configuration(self, text: str) -> str:
        """Write a configuration; return its path."""
        path = self.home / "server.conf"
        path.write_text(text)
        return str(path)

    def start(self) -> None:
        """Start, and wait until it listens."""
        with (self.home / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        give_up = time.monotonic() + _STARTED_WITHIN
        while not _listens(self.port):
            assert self._process.poll() is None, (self.home / "output").read_text()
            assert time.monotonic() < give_up, "it does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it and all its processes, in the middle of what they do."""
        self._end(signal.SIGKILL)
        give_up = time.monotonic() + _STARTED_WITHIN
        while _listens(self.port):  # Varnish's child has a group of its own, and ends when it finds itself alone.
            assert time.monotonic() < give_up, "it listens on"
            time.sleep(0.02)

    def close(self) -> None:
        """End it in an orderly way, or in any way."""
        self._end(signal.SIGTERM)
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Origins ------------------------------------------------------------------------------------------------------------


def nginx(home: Path, http: str = "", location: str = "") -> Service:
    """Start nginx; ``http`` and ``location`` are further lines of its configuration."""

    def configure(service: Service) -> Sequence[str]:
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{name}_temp_path {home}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = f"""
            {user} daemon off; pid {home}/pid; error_log {home}/error.log; worker_processes 1;
            events {{ worker_connections 512; }}
            http {{
                {temporary}
                log_format short '"$request" $status $body_bytes_sent';
                access_log {home}/access.log short;
                types {{ image/png png; image/svg+xml svg; }}
                gzip on; gzip_min_length 1; gzip_types image/svg+xml;
                {http}
                server {{ listen 127.0.0.1:{service.port} backlog=511; root {service.www};
                          location / {{ {location} }} }}
            }}"""
        return [service.program, "-e", f"{home}/error.log", "-c", service.configuration(configuration)]

    return Service("nginx", home, configure)


def apache2(home: Path) -> Service:
    """Start Apache."""

    def configure(service: Service) -> Sequence[str]:
        modules = "".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
            for name in ("mpm_event", "authz_core", "mime", "filter", "deflate")
        )
        user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
        configuration = f"""{modules}{user}
            ServerName 127.0.0.1
            ServerRoot {home}
            Listen 127.0.0.1:{service.port}
            PidFile {home}/pid
            ErrorLog {home}/error.log
            Mutex fcntl:{home}
            CustomLog {home}/access.log "\\"%r\\" %>s"
            TypesConfig /dev/null
            AddType image/png png
            AddType image/svg+xml svg
            AddOutputFilterByType DEFLATE image/svg+xml
            DocumentRoot {service.www}
            """
        return [service.program, "-f", service.configuration(configuration), "-DFOREGROUND"]

    return Service("apache2", home, configure)


def lighttpd(home: Path) -> Service:
    """Start lighttpd."""

    def configure(service: Service) -> Sequence[str]:
        configuration = f"""
            server.modules = ("mod_accesslog", "mod_deflate")
            server.document-root = "{service.www}"
            server.bind = "127.0.0.1"
            server.port = {service.port}
            server.stat-cache-engine = "disable"
            server.errorlog = "{home}/error.log"
            accesslog.filename = "{home}/access.log"
            accesslog.format = "\\"%r\\" %s"
            mimetype.assign = (".png" => "image/png", ".svg" => "image/svg+xml")
            deflate.mimetypes = ("image/svg+xml")
            deflate.allowed-encodings = ("gzip")
            """
        return [service.program, "-D", "-f", service.configuration(configuration)]

    return Service("lighttpd", home, configure)


def php(home: Path) -> Service:
    """Start PHP's own web server; what it logs goes to its output."""

    def configure(service: Service) -> Sequence[str]:
        service.log = home / "output"
        return [service.program, "-S", f"127.0.0.1:{service.port}", "-t", str(service.www)]

    return Service("php", home, configure)


def python(home: Path) -> Service:
    """Start Python's http.server."""

    def configure(service: Service) -> Sequence[str]:
        service.log = home / "output"
        service.program = sys.executable
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(service.www), str(service.port)]

    return Service("python3", home, configure)


def moto(home: Path) -> Service:
    """Start a double of S3; its log is colourful."""

    def configure(service: Service) -> Sequence[str]:
        service.log = home / "output"
        return [service.program, "-H", "127.0.0.1", "-p", str(service.port)]

    return Service("moto_server", home, configure)


# In front of others --------------------------------------------------------------------------------------------------


def haproxy(home: Path, behind: int) -> Service:
    """Start HAProxy in front of a port."""

    def configure(service: Service) -> Sequence[str]:
        configuration = f"""
            defaults
                mode http
                timeout connect 5s
                timeout client 60s
                timeout server 60s
            frontend all
                bind 127.0.0.1:{service.port}
                default_backend one
            backend one
                server one 127.0.0.1:{behind}
            """
        return [service.program, "-db", "-f", service.configuration(configuration.replace("            ", ""))]

    return Service("haproxy", home, configure)


def varnish(home: Path, behind: int) -> Service:
    """Start Varnish in front of a port."""

    def configure(service: Service) -> Sequence[str]:
        configuration = f'vcl 4.1; backend default {{ .host = "127.0.0.1"; .port = "{behind}"; }}'
        return [
            service.program, "-F", "-j", "none", "-a", f"127.0.0.1:{service.port}", "-f",
            service.configuration(configuration), "-n", str(home / "varnish"), "-s", "malloc,400m", "-T", "none",
        ]  # fmt: skip

    return Service("varnishd", home, configure)


def squid(home: Path) -> Service:
    """Start Squid as a forward proxy that keeps what it passes on."""

    def configure(service: Service) -> Sequence[str]:
        configuration = f"""
            http_port 127.0.0.1:{service.port}
            pid_filename {home}/pid
            cache_log {home}/cache.log
            logformat short "%rm %ru HTTP/1.1" %>Hs
            access_log stdio:{home}/access.log short
            logfile_rotate 0
            coredump_dir {home}
            cache_mem 64 MB
            maximum_object_size_in_memory 1 MB
            shutdown_lifetime 0 seconds
            http_access allow all
            """
        return [service.program, "-N", "-f", service.configuration(configuration.replace("            ", ""))]

    return Service("squid", home, configure)
