"""Credentials of a lab: its certificate authority, tokens, service-account key, kubeconfigs."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = dt.timedelta(days=3650)
_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
_ADDRESSES = ("127.0.0.1", "10.96.0.1")
# User of each token and its groups; the components are told apart in the audit log by user.
USERS = {
    "admin": "system:masters",
    "lab": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files that components and clients identify themselves with."""

    folder: Path
    authority: Path
    certificate: Path
    key: Path
    account_key: Path
    account_public: Path
    tokens: Path

    def token(self, user: str) -> str:
        """Read the token of one of USERS."""
        for line in self.tokens.read_text().splitlines():
            fields = line.split(",")
            if fields[1] == user:
                return fields[0]
        message = f"no token for {user} in {self.tokens}"
        raise KeyError(message)

    def kubeconfig(self, user: str, server: str) -> dict[str, object]:
        """Build the kubeconfig of one of USERS for the API server at ``server``."""
        authority = base64.b64encode(self.authority.read_bytes()).decode()
        cluster = {"server": server, "certificate-authority-data": authority}
        context = {"cluster": "lab", "user": user, "namespace": "default"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.token(user)}}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a whole file or none: under a temporary name first, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a value as one JSON file, whole or not at all."""
    write_file(path, json.dumps(value, indent=2).encode() + b"\n")


def provide(folder: Path) -> Credentials:
    """Give the credentials kept in the folder, made new where they are not there.

    Args:
        folder: existing folder of one lab.

    Returns:
        The credentials; the same ones at each later start, so tokens of accounts stay valid.
    """
    found = Credentials(
        folder=folder,
        authority=folder / "ca.crt",
        certificate=folder / "apiserver.crt",
        key=folder / "apiserver.key",
        account_key=folder / "sa.key",
        account_public=folder / "sa.pub",
        tokens=folder / "tokens.csv",
    )
    if not found.tokens.exists():
        _make(found)
    return found


def _make(wanted: Credentials) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("crossdock-lab", key=authority_key, signer=authority_key, issuer=None)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("kube-apiserver", key=key, signer=authority_key, issuer=authority)
    account = ec.generate_private_key(ec.SECP256R1())
    write_file(wanted.authority, authority.public_bytes(serialization.Encoding.PEM))
    write_file(wanted.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    write_file(wanted.key, _pem(key))
    write_file(wanted.account_key, _pem(account))
    public = account.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_file(wanted.account_public, public)
    rows = [
        f"{secrets.token_urlsafe(24)},{user},{user}" + (f',"{groups}"' if groups else "")
        for user, groups in USERS.items()
    ]
    write_file(wanted.tokens, "\n".join(rows).encode() + b"\n")


def _certificate(
    name: str,
    *,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(_usage(signs=issuer is None), critical=True)
    )
    if issuer is not None:
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in _NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in _ADDRESSES]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
