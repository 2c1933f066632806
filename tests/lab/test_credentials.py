"""Credentials are made once, fit together and are readable by their owner alone."""

from __future__ import annotations

import base64
import ipaddress

import pytest
from cryptography import x509

from tests.lab import credentials


@pytest.fixture
def made(tmp_path):
    return credentials.provide(tmp_path)


def test_they_stay_the_same_from_start_to_start(made):
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    assert credentials.provide(made.folder) == made
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before


def test_nobody_else_may_read_them(made):
    assert all(path.stat().st_mode & 0o077 == 0 for path in made.folder.iterdir())


def test_the_server_certificate_is_signed_and_names_loopback(made):
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)


def test_each_user_has_a_token_and_a_kubeconfig_of_their_own(made):
    tokens = {made.token(user) for user in credentials.USERS}
    assert len(tokens) == len(credentials.USERS)
    config = made.kubeconfig("kwok", "https://127.0.0.1:1")
    assert config["users"] == [{"name": "kwok", "user": {"token": made.token("kwok")}}]
    authority = base64.b64encode(made.authority.read_bytes()).decode()
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority-data": authority}
    assert config["clusters"] == [{"name": "lab", "cluster": cluster}]
    with pytest.raises(KeyError, match="nobody"):
        made.token("nobody")


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old and longer")
    credentials.write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
