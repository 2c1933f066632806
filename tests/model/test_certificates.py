from __future__ import annotations

import base64
import socket
import ssl
import threading
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.model.certificates import (
    VALIDITY,
    Authority,
    CertificateError,
    Usage,
    authority_fault,
    renewal_reason,
)

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
NAMES = ("provider-x", "provider-x.crossplane-system", "provider-x.crossplane-system.svc")


def b64(content):
    return base64.b64encode(content).decode()


def pem(key, form):
    return b64(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def crossplane_name():
    """The subject of all certificates of a Crossplane installation; its country is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        country = x509.NameAttribute(NameOID.COUNTRY_NAME, "Earth", _validate=False)
        return x509.Name([country, x509.NameAttribute(NameOID.COMMON_NAME, "Crossplane")])


def crossplane_builder(key, *, authority):
    name = crossplane_name()
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(2022)
        .not_valid_before(NOW)
        .not_valid_after(NOW + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )


def signed(builder, key):
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return b64(builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM))


def self_signed(key, *, authority=True):
    """A certificate as an installation of Crossplane has it, without a key identifier."""
    return signed(crossplane_builder(key, authority=authority), key)


@pytest.fixture(scope="module")
def authority():
    return Authority.create(NOW)


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def leaf(authority):
    return authority.issue(Usage.SERVER, NAMES, NOW)


def reason(data, authority, *, usage=Usage.SERVER, names=NAMES, now=NOW):
    return renewal_reason(data, authority=authority, usage=usage, dns_names=names, now=now)


def parsed(data, key="tls.crt"):
    return x509.load_pem_x509_certificate(base64.b64decode(data[key]))


def test_authority_survives_its_secret(authority):
    data = authority.secret_data()
    assert set(data) == {"tls.crt", "tls.key"}
    again = Authority.from_secret(data)
    assert again.certificate == authority.certificate
    assert again.secret_data() == data
    assert authority_fault(data, NOW) == ""


def test_authority_key_is_of_the_form_that_crossplane_reads(authority):
    key = base64.b64decode(authority.secret_data()["tls.key"])
    assert key.startswith(b"-----BEGIN RSA PRIVATE KEY-----")


def test_authority_may_sign_certificates_and_nothing_else(authority):
    extensions = authority.certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.certificate.not_valid_after_utc == NOW + VALIDITY


def test_leaf_is_signed_by_the_authority_for_its_names(authority, leaf):
    certificate = parsed(leaf)
    certificate.verify_directly_issued_by(authority.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert tuple(names.get_values_for_type(x509.DNSName)) == NAMES
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    again = parsed(authority.issue(Usage.SERVER, NAMES, NOW))
    assert certificate.serial_number != again.serial_number
    assert parsed(leaf, "ca.crt") == authority.certificate
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert reason(leaf, authority) == ""


def test_leaf_is_not_valid_longer_than_its_authority(authority):
    later = NOW + VALIDITY / 2
    certificate = parsed(authority.issue(Usage.CLIENT, ["p-1"], later))
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    assert certificate.not_valid_before_utc <= later


def test_names_too_long_for_a_subject_are_still_certified(authority):
    names = [f"{'n' * 60}.crossplane-system", "n" * 63]
    data = authority.issue(Usage.SERVER, names, NOW)
    assert reason(data, authority, names=names) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"tls.crt": None}, "tls.crt is missing"),
        ({"tls.key": ""}, "tls.key is missing"),
        ({"ca.crt": None}, "ca.crt is missing"),
        ({"tls.crt": "%%%"}, "tls.crt is no base64"),
        ({"tls.crt": b64(b"text")}, "tls.crt is no certificate in PEM form"),
        ({"tls.key": b64(b"text")}, "tls.key is no private key in PEM form"),
        ({"ca.crt": b64(b"text")}, "ca.crt is no certificate in PEM form"),
    ],
)
def test_an_incomplete_secret_is_renewed(authority, leaf, change, expected):
    assert reason({k: v for k, v in (leaf | change).items() if v is not None}, authority) == (
        expected
    )


def test_an_empty_secret_is_renewed(authority):
    assert reason({}, authority) == "tls.crt is missing"
    assert authority_fault({}, NOW) == "tls.crt is missing"


def test_a_key_of_another_certificate_is_noticed(authority, leaf):
    other = authority.issue(Usage.SERVER, NAMES, NOW)
    assert reason(leaf | {"tls.key": other["tls.key"]}, authority) == (
        "tls.key is not the key of tls.crt"
    )


def test_a_new_service_name_is_noticed(authority, leaf):
    assert (
        reason(leaf, authority, names=["b", "a", "provider-x"]) == "tls.crt is not valid for a, b"
    )
    assert reason(leaf, authority, names=["provider-x"]) == ""


def test_a_certificate_of_the_other_usage_is_noticed(authority, leaf):
    assert reason(leaf, authority, usage=Usage.CLIENT) == "tls.crt is no client certificate"


def test_a_new_authority_is_noticed(authority, leaf, rsa_key):
    data = {"tls.crt": self_signed(rsa_key), "tls.key": pem(rsa_key, PKCS8)}
    other = Authority.from_secret(data)
    assert reason(leaf, other) == "the certificate authority has changed"
    assert reason(leaf | {"ca.crt": other.pem}, other) == "the certificate authority has changed"


@pytest.mark.parametrize(
    ("after", "renewed"),
    [
        (timedelta(0), False),
        (VALIDITY / 2, False),
        (VALIDITY * 0.89, False),
        (VALIDITY * 0.91, True),
        (VALIDITY * 2, True),
        (-timedelta(days=1), True),
    ],
)
def test_the_last_tenth_of_the_validity_is_for_renewal(authority, leaf, after, renewed):
    assert bool(reason(leaf, authority, now=NOW + after)) == renewed
    assert bool(authority_fault(authority.secret_data(), NOW + after)) == renewed


PKCS1 = serialization.PrivateFormat.TraditionalOpenSSL
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.mark.parametrize("form", [PKCS1, PKCS8])
def test_an_authority_of_an_existing_installation_signs(rsa_key, form):
    existing = Authority.from_secret(
        {"tls.crt": self_signed(rsa_key), "tls.key": pem(rsa_key, form)}
    )
    data = existing.issue(Usage.CLIENT, ["p-1"], NOW)
    assert reason(data, existing, usage=Usage.CLIENT, names=["p-1"]) == ""


def test_certificates_of_an_existing_installation_are_kept(rsa_key):
    data = {"tls.crt": self_signed(rsa_key), "tls.key": pem(rsa_key, PKCS1)}
    existing = Authority.from_secret(data)
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = crossplane_builder(rsa_key, authority=False)
    certificate = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    leaf = {"tls.crt": signed(certificate, rsa_key), "tls.key": data["tls.key"]}
    assert reason(leaf | {"ca.crt": data["tls.crt"]}, existing) == ""
    assert authority_fault(data, NOW) == ""


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_an_authority_with_another_kind_of_key_signs(key):
    own = Authority.from_secret({"tls.crt": self_signed(key), "tls.key": pem(key, PKCS8)})
    assert reason(own.issue(Usage.SERVER, NAMES, NOW), own) == ""


def test_a_certificate_that_is_no_authority_is_refused(rsa_key):
    data = {"tls.crt": self_signed(rsa_key, authority=False), "tls.key": pem(rsa_key, PKCS1)}
    with pytest.raises(CertificateError, match=r"tls\.crt is no certificate authority"):
        Authority.from_secret(data)


def test_a_key_that_cannot_sign_is_refused(rsa_key):
    key = dsa.generate_private_key(key_size=1024)
    data = {"tls.crt": self_signed(rsa_key), "tls.key": pem(key, PKCS8)}
    with pytest.raises(CertificateError, match=r"tls\.key is of an unsupported type"):
        Authority.from_secret(data)


def test_an_encrypted_key_is_refused(rsa_key):
    key = rsa_key.private_bytes(
        serialization.Encoding.PEM, PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(CertificateError, match=r"tls\.key is no private key"):
        Authority.from_secret({"tls.crt": self_signed(rsa_key), "tls.key": b64(key)})


def test_nothing_shows_the_key(authority):
    assert "PRIVATE" not in repr(authority)
    assert "key" not in repr(authority).replace("KeyUsage", "")


def test_a_client_and_a_server_authenticate_each_other(tmp_path):
    """OpenSSL accepts both ends' certificates for the names they were issued for."""
    now = datetime.now(UTC)
    current = Authority.create(now)
    server = context(ssl.PROTOCOL_TLS_SERVER, current.issue(Usage.SERVER, NAMES, now), tmp_path)
    client = context(ssl.PROTOCOL_TLS_CLIENT, current.issue(Usage.CLIENT, ["p-1"], now), tmp_path)
    server.verify_mode = ssl.CERT_REQUIRED
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)
    seen = []

    def serve():
        with server.wrap_socket(far, server_side=True) as stream:
            seen.append(stream.getpeercert())
            stream.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(near, server_hostname=NAMES[2]) as stream:
        assert stream.recv(5) == b"hello"
    thread.join(timeout=10)
    assert seen[0]["subjectAltName"] == (("DNS", "p-1"),)


def context(protocol, data, folder):
    made = ssl.SSLContext(protocol)
    for name, content in data.items():
        (folder / name).write_bytes(base64.b64decode(content))
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    made.load_verify_locations(folder / "ca.crt")
    return made
