"""TLS certificates of packages: the root authority and what it signs, as values of Secrets.

Secrets are mappings of base64 text, as their ``data`` is stored. The authority has an RSA key in
PKCS#1 form, since that is what Crossplane reads it as; what it signs has an ECDSA P-256 key.
Making or reading an authority takes long enough (0.05 to 0.5 s) to be done once and off the event
loop; issuing and checking certificates takes about a millisecond.

Source: Crossplane's TLS Secrets; RFC 5280 for certificates.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.model.objects import ROOT_CA_SECRET

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
CA_CERTIFICATE: Final = "ca.crt"
VALIDITY: Final = timedelta(days=3650)
BACKDATED: Final = timedelta(minutes=5)  # clocks of nodes differ
RENEWAL_FRACTION: Final = 10  # renewed in the last tenth of the validity
_AUTHORITY_KEY_BITS: Final = 3072
_COMMON_NAME_MAX: Final = 64

SigningKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class CertificateError(ValueError):
    """The content of a Secret is no usable certificate and key; never holds key material."""


class Usage(StrEnum):
    """What a certificate proves: the identity of a server or of a client."""

    SERVER = "server"
    CLIENT = "client"


_EXTENDED_USAGE: Final = {
    Usage.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Usage.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate and key that sign others."""

    certificate: x509.Certificate
    key: SigningKey = field(repr=False)

    @classmethod
    def create(cls, now: datetime) -> Authority:
        """Return a new self-signed root authority, valid for ten years.

        Args:
            now: the time, with its zone.
        """
        key = rsa.generate_private_key(public_exponent=65537, key_size=_AUTHORITY_KEY_BITS)
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Crossplane"),
                x509.NameAttribute(NameOID.COMMON_NAME, ROOT_CA_SECRET),
            ]
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            _builder(name, key.public_key(), now)
            .issuer_name(name)
            .not_valid_after(now + VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(_alternative_names([ROOT_CA_SECRET]), critical=False)
            .add_extension(identifier, critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> Authority:
        """Return the authority that a Secret holds, with an RSA, ECDSA or Ed25519 key.

        Args:
            data: the Secret's ``data``; ``tls.crt`` and ``tls.key`` are read.

        Raises:
            CertificateError: one is missing or unreadable, they do not belong together, or the
                certificate may not sign others.
        """
        certificate, key = _pair(data, check_key=True)
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            is_authority = constraints.value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = False
        if not is_authority:
            raise CertificateError(f"{CERTIFICATE} is no certificate authority")
        return cls(certificate, key)

    @property
    def pem(self) -> str:
        """The certificate as base64 of PEM, for ``ca.crt`` and for CA bundles of webhooks."""
        return _encode(self.certificate.public_bytes(serialization.Encoding.PEM))

    def secret_data(self) -> dict[str, str]:
        """Return the ``data`` of the Secret that keeps the authority."""
        return {CERTIFICATE: self.pem, KEY: _key_text(self.key)}

    def issue(self, usage: Usage, dns_names: Sequence[str], now: datetime) -> dict[str, str]:
        """Return the ``data`` of a Secret with a new key and a certificate for it.

        Args:
            usage: server or client.
            dns_names: what the certificate is valid for, at least one.
            now: the time, with its zone.

        Returns:
            ``tls.crt``, ``tls.key`` and ``ca.crt``. It is valid for ten years, but not longer than
            the authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        common_name = next((name for name in dns_names if len(name) <= _COMMON_NAME_MAX), usage)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Crossplane"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )
        with _lenient_names():
            builder = (
                _builder(subject, key.public_key(), now)
                .issuer_name(self.certificate.subject)
                .not_valid_after(min(now + VALIDITY, self.certificate.not_valid_after_utc))
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(_key_usage(authority=False), critical=True)
                .add_extension(x509.ExtendedKeyUsage([_EXTENDED_USAGE[usage]]), critical=False)
                .add_extension(_alternative_names(dns_names), critical=False)
                .add_extension(self._key_identifier(), critical=False)
            )
            algorithm = None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            certificate = builder.sign(self.key, algorithm)
        return {
            CERTIFICATE: _encode(certificate.public_bytes(serialization.Encoding.PEM)),
            KEY: _key_text(key),
            CA_CERTIFICATE: self.pem,
        }

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """Return the identifier that the authority's certificate states, else its key's hash."""
        try:
            stated = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(stated.value)


def authority_fault(data: Mapping[str, str], now: datetime) -> str:
    """Return why a Secret's authority must be made anew, empty while it serves.

    Args:
        data: the Secret's ``data``, empty for one that was never filled.
        now: the time, with its zone.
    """
    try:
        authority = Authority.from_secret(data)
    except CertificateError as error:
        return str(error)
    return _expiry_fault(authority.certificate, now)


def renewal_reason(
    data: Mapping[str, str],
    *,
    authority: Authority,
    usage: Usage,
    dns_names: Collection[str],
    now: datetime,
) -> str:
    """Return why a Secret's certificate must be issued anew, empty while it serves.

    Args:
        data: the Secret's ``data``, empty for one that was never filled.
        authority: what must have signed it.
        usage: what it must be good for.
        dns_names: names that must be in it; more of them do not matter.
        now: the time, with its zone.

    Returns:
        What is missing, unreadable or wrong, or that the last tenth of its validity has begun.
    """
    try:
        certificate, _ = _pair(data, check_key=False)  # nothing is signed with it
        known = _certificate(data, CA_CERTIFICATE)
    except CertificateError as error:
        return str(error)
    if known != authority.certificate or not _is_signed_by(certificate, authority):
        return "the certificate authority has changed"
    if missing := sorted(set(dns_names) - _names_of(certificate)):
        return f"{CERTIFICATE} is not valid for {', '.join(missing)}"
    if _EXTENDED_USAGE[usage] not in _usages_of(certificate):
        return f"{CERTIFICATE} is no {usage} certificate"
    return _expiry_fault(certificate, now)


def _expiry_fault(certificate: x509.Certificate, now: datetime) -> str:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        return f"{CERTIFICATE} is not valid before {start:%Y-%m-%dT%H:%M:%SZ}"
    if now >= end - (end - start) / RENEWAL_FRACTION:
        return f"{CERTIFICATE} is only valid until {end:%Y-%m-%dT%H:%M:%SZ}"
    return ""


def _is_signed_by(certificate: x509.Certificate, authority: Authority) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return set()
    return set(names.value.get_values_for_type(x509.DNSName))


def _usages_of(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        return set()


def _pair(data: Mapping[str, str], *, check_key: bool) -> tuple[x509.Certificate, SigningKey]:
    """Return certificate and key of a Secret; checking an RSA key takes 50 to 150 ms."""
    certificate = _certificate(data, CERTIFICATE)
    try:
        key = serialization.load_pem_private_key(
            _decoded(data, KEY), password=None, unsafe_skip_rsa_key_validation=not check_key
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{KEY} is no private key in PEM form") from None
    if not isinstance(key, SigningKey):
        raise CertificateError(f"{KEY} is of an unsupported type: use RSA, ECDSA or Ed25519")
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{KEY} is not the key of {CERTIFICATE}")
    return certificate, key


def _certificate(data: Mapping[str, str], name: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_decoded(data, name))
    except CertificateError:
        raise
    except ValueError:
        raise CertificateError(f"{name} is no certificate in PEM form") from None


def _decoded(data: Mapping[str, str], name: str) -> bytes:
    text = data.get(name)
    if not text:
        raise CertificateError(f"{name} is missing")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CertificateError(f"{name} is no base64") from None


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _key_text(key: SigningKey) -> str:
    """Return a key as base64 of PEM: PKCS#1 for RSA, which Crossplane asks for, else PKCS#8."""
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    if not is_rsa:
        form = serialization.PrivateFormat.PKCS8
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return _encode(content)


def _builder(
    subject: x509.Name, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - BACKDATED)
    )


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def _lenient_names() -> Iterator[None]:
    """Accept subjects that break the length of a country's code, as Crossplane's own does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute's length must be")
        yield
