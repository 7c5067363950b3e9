"""Whose word a registry's certificate is taken on: the authorities that this machine trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

BUNDLES: Final = (  # where systems keep them as one file, if their OpenSSL does not say
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def authorities() -> str:
    """A file of certificates; "" where none is found. SSL_CERT_FILE names another one."""
    found = ssl.get_default_verify_paths().cafile
    return next((each for each in (found, *BUNDLES) if each and Path(each).is_file()), "")
