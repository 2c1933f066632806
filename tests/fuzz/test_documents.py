"""Documents that others wrote: manifests, YAML, cache records, logins."""

import base64
import hashlib
import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
from hypothesis import strategies as st

from controller.model.manifest import ManifestError, iter_documents
from controller.registry.cache_files import DamagedEntry, OtherVersion
from controller.registry.cached import CacheKey, Content, Facts, Record
from controller.registry.credentialhelpers import read_answer
from controller.registry.credentials import Keychain
from controller.registry.dockerconfig import choose_helper, read_config, read_login
from controller.registry.failures import AuthError, RegistryError
from controller.registry.matching import matches, normalise_key
from controller.registry.media import Index, decode_manifest, digest_of, select
from controller.registry.reference import parse_reference
from tests.fuzz.inputs import altered, check_text, damaged, damaged_text, fuzzed, json_values

DIGEST = f"sha256:{'a' * 64}"
OCI = "application/vnd.oci.image."
LAYER = {"mediaType": f"{OCI}layer.v1.tar+gzip", "digest": DIGEST, "size": 10}
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": f"{OCI}manifest.v1+json",
    "config": {"mediaType": f"{OCI}config.v1+json", "digest": DIGEST, "size": 2},
    "layers": [{**LAYER, "annotations": {"io.crossplane.xpkg": "base"}}, LAYER],
    "annotations": {"a": "b"},
}
INDEX = {
    "schemaVersion": 2,
    "mediaType": f"{OCI}index.v1+json",
    "manifests": [
        {
            "mediaType": f"{OCI}manifest.v1+json",
            "digest": DIGEST,
            "size": 100,
            "platform": {"architecture": "amd64", "os": "linux"},
        }
    ],
}
REFERENCE = parse_reference("reg.io:5000/acme/demo:v1")


def encoded(value: Any) -> bytes:
    """JSON as Python writes it, with what JSON does not have."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def documents(*originals: Any) -> st.SearchStrategy[bytes]:
    """JSON documents that are nearly right, in their values or in their bytes."""
    in_values = st.sampled_from(originals).flatmap(altered).map(encoded)
    in_bytes = damaged(st.sampled_from([encoded(original) for original in originals]))
    return in_values | in_bytes | json_values().map(encoded)


@fuzzed(
    documents(MANIFEST, INDEX),
    st.sampled_from(
        ["", f"{OCI}manifest.v1+json", f"{OCI}index.v1+json; charset=utf-8", "text/html"]
    ),
)
def test_manifests_are_read_or_refused(raw: bytes, content_type: str) -> None:
    try:
        found = decode_manifest(raw, content_type=content_type, digest=digest_of(raw))
        if isinstance(found, Index):
            entry, _ = select(found)
            assert entry in found.entries
        else:
            assert found.raw == raw
            assert all(layer.size >= 0 for layer in found.layers)
    except RegistryError as error:
        check_text(error)


@fuzzed(
    st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000, b'"' + b"\\u0000" * 50_000])
)
def test_deep_and_long_documents_are_refused(raw: bytes) -> None:
    try:
        decode_manifest(raw, content_type="", digest=digest_of(raw))
    except RegistryError as error:
        check_text(error)
    else:
        raise AssertionError("it was read")


YAML = [
    b"apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n# nothing\n---\nb: [1, 2.5, ~, 'x']\n",
    b"a: &a {b: *a}\n",
    b"a: &x [1,2]\nb: &y [*x,*x]\nc: &z [*y,*y]\nd: {<<: {e: 1}, <<: [{f: 2}]}\n",
    b"\xef\xbb\xbfa: !!binary aGk=\nb: !!timestamp 2001-12-14t21:59:43.10-05:00\nc: 0o14\n",
    b"? {a: b}\n: c\n? [x]\n: y\n",
    b"a: |\n  text\n  --- no\nb: >-\n  folded\n...\n---\n- list\n",
    b"%YAML 1.1\n%TAG ! tag:a,2000:\n---\na: !b c\n",
    b"a: " + b"[" * 300,
    b"a: 1" + b"0" * 5000 + b"\nb: 1e999\nc: .inf\nd: 0x" + b"f" * 3000 + b"\n",
    b"a: 12:30:45\nb: 2020-13-45\nc: 1_000\nd: -0b11\n",
]


@fuzzed(
    damaged(st.sampled_from(YAML))
    | st.text(st.sampled_from("ab:-[]{}&*!|>'\"\n #%?~<,"), max_size=60).map(str.encode)
)
def test_yaml_is_read_into_json_or_refused(raw: bytes) -> None:
    try:
        for document in iter_documents(BytesIO(raw), source="package.yaml"):
            orjson.dumps(document.value)
            assert document.line >= 1
    except ManifestError as error:
        check_text(error)


RECORD = Record(
    CacheKey("reg.io/acme/demo", DIGEST),
    Facts({"kind": "Provider"}, DIGEST, DIGEST, 5, b"{}", {"a": 1}, [{"policyFingerprint": "x"}]),
    Content(DIGEST, 5, DIGEST, 7, "gzip"),
    Content(DIGEST, 5, DIGEST, 7, "zstd"),
)


def sealed(body: bytes) -> bytes:
    """A record's file with a checksum that fits."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@fuzzed(
    damaged(st.just(RECORD.encode()))
    | documents(orjson.loads(RECORD.encode().partition(b"\n")[2])).map(sealed)
)
def test_cache_records_are_what_was_written_or_damaged(raw: bytes) -> None:
    try:
        found = Record.decode(raw)
    except (DamagedEntry, OtherVersion):
        return
    assert asdict(found.key) == {"repository": found.key.repository, "digest": found.key.digest}
    assert Record.decode(found.encode()) == found


def login(name: str = "user", word: str = "pw") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{word}".encode()).decode()}


CONFIG = {
    "auths": {
        "reg.io:5000": login(),
        "https://reg.io:5000/v2/acme": {"identitytoken": "x"},
        "*.io:5000": {"registrytoken": "t"},
        "https://index.docker.io/v1/": {"username": "a", "password": "b"},
    },
    "credHelpers": {"reg.io:5000": "test"},
    "credsStore": "test",
}


@fuzzed(documents(CONFIG))
def test_login_files_are_read_or_refused(raw: bytes) -> None:
    path = Path("/home/me/.docker/config.json")
    try:
        config = read_config(raw, path)
        assert isinstance(choose_helper(config, REFERENCE, path), str)
        for found in read_login(config, REFERENCE, path):
            assert len(found.fingerprint) == 32
            assert found.basic.isprintable()
    except AuthError as error:
        check_text(error, str(path))


@fuzzed(
    documents(CONFIG),
    st.sampled_from(["kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"]),
)
def test_pull_secrets_are_read_or_refused(raw: bytes, kind: str) -> None:
    key = ".dockerconfigjson" if kind.endswith("json") else ".dockercfg"
    secret = {
        "metadata": {"namespace": "ns", "name": "pull"},
        "type": kind,
        "data": {key: base64.b64encode(raw).decode()},
    }
    keychain = Keychain.from_pull_secrets([secret])
    look_up = keychain.look_up(REFERENCE)
    try:
        look_up.send(None)
    except StopIteration as ended:
        for found in ended.value.credentials:
            assert len(found.fingerprint) == 32
    except AuthError as error:
        check_text(error, "secret ns/pull")
    else:
        raise AssertionError("it waits for something")


@fuzzed(
    damaged_text(
        "reg.io:5000/acme",
        "*.io:5000",
        "[a-z]eg.io:5000",
        "https://reg.io:5000/v2/",
        "r[^\\]a-]?*.io:5000",
    )
)
def test_keys_of_any_shape_match_or_do_not(key: str) -> None:
    assert matches(normalise_key(key), REFERENCE) in (True, False)


@fuzzed(documents({"ServerURL": "reg.io", "Username": "u", "Secret": "pw"}), st.integers(0, 2))
def test_answers_of_helpers_are_read_or_refused(raw: bytes, code: int) -> None:
    try:
        found = read_answer(raw, code, name="test", program="/bin/docker-credential-test")
    except AuthError as error:
        check_text(error)
        return
    assert found is None or len(found.fingerprint) == 32
