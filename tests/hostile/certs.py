"""Test certificates: an authority, a right server, a server for another host, a client."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

NAMES = {
    "server": ("localhost", "127.0.0.1"),
    "wronghost": ("wrong.example",),
    "client": ("client.example",),
}


def make_certs(folder: Path) -> dict[str, str]:
    """The paths of `ca.pem` and of `<name>.pem` and `<name>.key` for each name, made in the folder."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, identities in NAMES.items():
        cert = authority.issue_cert(*identities)
        cert.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for part in cert.cert_chain_pems:
            part.write_to_path(str(folder / f"{name}.pem"), append=True)
    return {path.name: str(path) for path in sorted(folder.iterdir())}


def server_context(certs: dict[str, str], *, name: str = "server", require_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs[f"{name}.pem"], certs[f"{name}.key"])
    if require_client:
        context.load_verify_locations(certs["ca.pem"])
        context.verify_mode = ssl.CERT_REQUIRED
    return context
