"""The names of many hosts: a resolver on loopback, and a mount namespace in which it is the only one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from servers import MissingError, wait_until

_ADDRESS = "127.0.4.1"
_PORT = 53  # the resolvers of C libraries ask no other
# What other programs find in /etc stays as it is: the file is another one in this namespace alone.
_ENTER = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
_TOOLS = {"dnsmasq": "dnsmasq-base", "unshare": "util-linux", "nsenter": "util-linux"}
_SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@contextmanager
def resolver(work: Path, addresses: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Run a resolver; give the start of a command line for programs that are to ask it.

    ``addresses`` has the IPv4 address of each domain, and of all names below it; other names do not exist.
    """
    _check()
    settings, log = work / "resolv.conf", work / "dnsmasq.log"
    settings.write_text(f"nameserver {_ADDRESS}\n")
    command = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(settings), *_dnsmasq(work, addresses)]
    with log.open("wb") as output, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output) as process:
        try:
            wait_until(lambda: _answers() or process.poll() is not None, "dnsmasq does not answer")
            if process.poll() is not None:
                raise MissingError(f"dnsmasq does not start: {log.read_text().strip()}")
            yield ("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--")
        finally:
            process.terminate()


def _check() -> None:
    if os.geteuid() != 0:
        raise MissingError("root is needed for names of many hosts: a mount namespace, and a resolver on port 53")
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=_SEARCH) is None:
            raise MissingError(f"{tool} is missing: apt-get install {package}")
    if _answers():
        raise MissingError(f"another program has {_ADDRESS}, port {_PORT}; end it to measure many hosts")
    trial = subprocess.run(
        ["unshare", "--mount", "mount", "--bind", "/etc/resolv.conf", "/etc/resolv.conf"], check=False
    )
    if trial.returncode:
        raise MissingError("a mount namespace is not to be had, though this is root: a container may forbid it")


def _dnsmasq(work: Path, addresses: Mapping[str, str]) -> list[str]:
    """Return its command line; in its settings, a domain without an address is one that does not exist."""
    settings = work / "dnsmasq.conf"
    lines = [f"address=/{domain}/{address}\n" for domain, address in addresses.items()]
    settings.write_text("".join(["local=/#/\n", *lines]))
    alone = ["--no-resolv", "--no-hosts", "--bind-interfaces", f"--pid-file={work / 'dnsmasq.pid'}"]
    where = [f"--port={_PORT}", f"--listen-address={_ADDRESS}"]
    return [str(shutil.which("dnsmasq", path=_SEARCH)), "--no-daemon", f"--conf-file={settings}", *alone, *where]


def _answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_ADDRESS, _PORT)) == 0
