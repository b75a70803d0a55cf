"""Certificates for tests, made by `openssl`."""

import dataclasses
import pathlib
import subprocess


@dataclasses.dataclass
class Certificate:
    """A file as users upload it, and the leaf that a client must then see."""

    path: str
    der: bytes


def _openssl(*arguments):
    return subprocess.run(["openssl", *arguments], capture_output=True, check=True, timeout=60).stdout


def self_signed(directory, name, password=None, names=None):
    """A self-signed certificate for one host name, or for `names`: PEM with its key, or PFX when a password is given."""
    base = pathlib.Path(directory) / name
    key, chain = f"{base}.key", f"{base}.crt"
    alternatives = ",".join(f"DNS:{one}" for one in names or [name])
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-keyout", key, "-out", chain, "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternatives}",
    )  # fmt: skip
    der = _openssl("x509", "-in", chain, "-outform", "DER")
    if password is not None:
        path = f"{base}.pfx"
        _openssl("pkcs12", "-export", "-inkey", key, "-in", chain, "-out", path, "-passout", f"pass:{password}")
        return Certificate(path, der)
    path = f"{base}.pem"
    pathlib.Path(path).write_text(pathlib.Path(chain).read_text() + pathlib.Path(key).read_text())
    return Certificate(path, der)
