"""Certificates for the TLS server of the benchmarks: an authority of their own, and keys of the usual kind."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """The files of a server: its certificate ``chain`` and ``key``, and the ``authority`` that clients are told."""

    chain: Path
    key: Path
    authority: Path


def make_certificates(directory: Path, *names: str) -> Certificates | None:
    """Make a certificate (ECDSA P-256) for ``names`` and IP addresses; None without ``trustme``."""
    if importlib.util.find_spec("trustme") is None:
        return None
    import trustme  # an optional extra, and slow to import

    made = Certificates(directory / "chain.pem", directory / "key.pem", directory / "authority.pem")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    certificate = authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
    made.chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(made.key)
    authority.cert_pem.write_to_path(made.authority)
    return made
