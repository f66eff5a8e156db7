"""The servers of the benchmarks: an nginx of their own on loopback addresses, and hosts that are dead."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from certificates import Certificates

HOST = "127.0.0.1"
SLOW_HOSTS = tuple(f"127.0.1.{number}" for number in range(1, 41))
SLOW_DELAY = 0.005  # seconds; the host numbered N answers after N times that
GOOD_HOSTS = tuple(f"127.0.2.{number}" for number in range(1, 21))
HANGING_HOST = "127.0.3.1"
REFUSING_HOST = "127.0.3.2"
TLS_HOST = "127.0.0.2"
SILENT_HOSTS = tuple(f"127.0.5.{number}" for number in range(1, 201))

_MODULES = Path("/usr/lib/nginx/modules")
_NDK_MODULE = _MODULES / "ndk_http_module.so"  # the lua module needs it loaded first
_LUA_MODULE = _MODULES / "ngx_http_lua_module.so"
_STATUS = "/status"
_PATIENCE = 10.0  # seconds for nginx to start, or to be done with a client that has gone

# One worker: its log is in the order of its answers, and the other cores are left to the clients.
_CONFIGURATION = """
user {user};
load_module {ndk};
load_module {lua};
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    types {{ image/png png; }}
    sendfile on;
    tcp_nopush on;
    log_format answers '$msec $status';
    access_log {log} answers;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    root {root};
    server {{
        {listen}
        location /1ms/ {{ access_by_lua_block {{ ngx.sleep(0.001) }} alias {root}/; }}
        location /50ms/ {{ access_by_lua_block {{ ngx.sleep(0.05) }} alias {root}/; }}
        location /200ms/ {{ access_by_lua_block {{ ngx.sleep(0.2) }} alias {root}/; }}
        location /fresh/ {{ add_header Cache-Control max-age=86400; alias {root}/; }}
        location /many/ {{ add_header Cache-Control max-age=86400; rewrite ^ /pixel/00000.png break; }}
        location = {status} {{ access_log off; stub_status; }}
    }}
    server {{
        {listen_slow}
        access_by_lua_block {{ ngx.sleep(tonumber(ngx.var.server_addr:match("%d+$")) * {slow_delay}) }}
    }}
    {tls}
}}
"""
_TLS_CONFIGURATION = """
    server {{
        listen {host}:{port} ssl;
        ssl_certificate {certificates.chain};
        ssl_certificate_key {certificates.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location /50ms/ {{ access_by_lua_block {{ ngx.sleep(0.05) }} alias {root}/; }}
        location /many/ {{ rewrite ^ /pixel/00000.png break; }}
    }}
"""


class MissingError(Exception):
    """The benchmarks cannot run; the text says what is missing and where it is to be had."""


@dataclass(frozen=True)
class Answers:
    """What the server answered in one run; ``last_image`` is the time of the last 200, in seconds since the epoch."""

    count: int
    last_image: float | None


class Server:
    """A running nginx; ``port`` is the same on each of its addresses, ``certificates`` are those of the TLS one."""

    def __init__(self, port: int, log: Path, certificates: Certificates | None) -> None:
        self.port = port
        self.certificates = certificates
        self._log = log

    def url(self, path: str, host: str = HOST) -> str:
        """Return the URL of ``path``."""
        return f"http://{host}:{self.port}/{path}"

    def tls_url(self, path: str, host: str = TLS_HOST) -> str:
        """Return the URL of ``path`` at the TLS address."""
        return f"https://{host}:{self.port}/{path}"

    def forget(self) -> None:
        """Empty the access log."""
        self._wait_for_log()
        os.truncate(self._log, 0)

    def answers(self) -> Answers:
        """Count what was answered since the log was emptied."""
        self._wait_for_log()
        count, last_image = 0, None
        with self._log.open() as lines:
            for line in lines:
                when, status = line.split()
                count += 1
                last_image = float(when) if status == "200" else last_image
        return Answers(count, last_image)

    def _wait_for_log(self) -> None:
        """Wait until no connection is left but the one that asks: nginx has then written a line for each answer."""
        wait_until(lambda: _active_connections(self.port) == 1, "nginx is not done with its clients")


@contextmanager
def running_server(work: Path, root: Path, certificates: Certificates | None) -> Iterator[Server]:
    """Run an nginx that serves ``root`` and keeps its own files in ``work``; over TLS as well, given certificates."""
    program = _nginx()
    port = _free_port()
    log = work / "access.log"
    (work / "nginx.conf").write_text(_configuration(work, root, log, port, certificates))
    command = [program, "-p", str(work), "-e", str(work / "error.log"), "-c", str(work / "nginx.conf")]
    with subprocess.Popen(command) as nginx:
        try:
            wait_until(lambda: _accepts(port), f"nginx does not start: see its messages above and {work}/error.log")
            yield Server(port, log, certificates)
        finally:
            nginx.terminate()


def version() -> str:
    """Return the version of nginx; ``MissingError`` if it cannot be run."""
    return subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=True).stderr.partition("/")[2].strip()


@contextmanager
def hanging_host() -> Iterator[str]:
    """Give a host and port whose listener never accepts: connections to it neither succeed nor fail."""
    with _hanging_listener(HANGING_HOST) as port:
        yield f"{HANGING_HOST}:{port}"


@contextmanager
def hanging_hosts(addresses: Sequence[str], port: int) -> Iterator[None]:
    """Have connections to a port of these addresses neither succeed nor fail."""
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(_hanging_listener(address, port))
        yield


@contextmanager
def refusing_host() -> Iterator[str]:
    """Give a host and port that refuse each connection: the port is bound, so it stays ours, but nobody listens."""
    with socket.socket() as bound:
        bound.bind((REFUSING_HOST, 0))
        yield f"{REFUSING_HOST}:{bound.getsockname()[1]}"


@contextmanager
def _hanging_listener(address: str, port: int = 0) -> Iterator[int]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):  # the first fills the queue; from then on Linux drops each SYN
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], complaint: str) -> None:
    """Wait for a condition; ``MissingError`` with the complaint if it does not come true in time."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise MissingError(complaint)
        time.sleep(0.01)


def _nginx() -> str:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise MissingError("nginx is missing: apt-get install nginx-light libnginx-mod-http-lua")
    for module in (_NDK_MODULE, _LUA_MODULE):
        if not module.exists():
            raise MissingError(f"nginx's {module} is missing: apt-get install libnginx-mod-http-lua")
    return program


def _configuration(work: Path, root: Path, log: Path, port: int, certificates: Certificates | None) -> str:
    return _CONFIGURATION.format(
        user=pwd.getpwuid(os.geteuid()).pw_name,
        ndk=_NDK_MODULE,
        lua=_LUA_MODULE,
        work=work,
        root=root,
        log=log,
        listen=" ".join(f"listen {host}:{port};" for host in (HOST, *GOOD_HOSTS)),
        listen_slow=" ".join(f"listen {host}:{port};" for host in SLOW_HOSTS),
        slow_delay=SLOW_DELAY,
        status=_STATUS,
        tls=""
        if certificates is None
        else _TLS_CONFIGURATION.format(host=TLS_HOST, port=port, certificates=certificates, root=root),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _active_connections(port: int) -> int:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", _STATUS)
    answer = connection.getresponse().read().decode()
    connection.close()
    return int(answer.split()[2])  # "Active connections: 1 ..."
