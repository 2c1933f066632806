"""A peer that speaks TLS on loopback, and the authorities, certificates and keys for it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """A certificate authority."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(name, self._key, authority=True)
        self.pem = self._certificate.public_bytes(PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Return a certificate for a name on 127.0.0.1, and its key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._sign(name, key, authority=False).public_bytes(PEM), key_pem(key)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        issuer = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
                critical=False,
            )
            .add_extension(_usage(authority=authority), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def key_pem(key: ec.EllipticCurvePrivateKey, *, password: bytes | None = None) -> bytes:
    """Return a private key in PEM."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


class TlsServer:
    """Tells each client who it is to it; streams what the test says to all that watch.

    Attributes:
        url: where it listens.
        refused: Authorization values, and names of client certificates, that are answered 401.
        seen: (name of the client certificate, Authorization) of each request.
        bodies: those of the requests that had one.
        watching: how many watches are open.
    """

    def __init__(self, folder: Path, clients: Authority) -> None:
        self.url = ""
        self.refused: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.watching = 0
        self._folder = folder
        self._lines: list[asyncio.Queue[bytes]] = []
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._tls.load_verify_locations(cadata=clients.pem.decode())

    def certify(self, authority: Authority) -> None:
        """Use a certificate of an authority for all connections from now on."""
        certificate, key = authority.issue("server")
        path = self._folder / "server.pem"
        path.write_bytes(certificate + key)
        self._tls.load_cert_chain(path)

    def say(self, line: bytes) -> None:
        """Send a line to all watches."""
        for queue in self._lines:
            queue.put_nowait(line + b"\n")

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path, *, authority: Authority) -> AsyncIterator[TlsServer]:
        """Serve on a free port; the authority signs the server, and clients are trusted by it."""
        server = cls(folder, authority)
        server.certify(authority)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server._handle)
        runner = web.AppRunner(
            app, shutdown_timeout=0.05, access_log=None, handler_cancellation=True
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server._tls).start()
        server.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield server
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if body := await request.read():
            self.bodies.append(body)
        assert request.transport is not None
        certificate = request.transport.get_extra_info("peercert") or {}
        names = [value for part in certificate.get("subject", ()) for _, value in part]
        who = (names[0] if names else "", request.headers.get("Authorization", ""))
        self.seen.append(who)
        if self.refused & set(who):
            return web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        if request.query.get("watch"):
            return await self._stream(request)
        return web.json_response({"kind": "Namespace", "certificate": who[0], "token": who[1]})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._lines.append(lines)
        self.watching += 1
        try:
            while True:
                await response.write(await lines.get())
        finally:
            self.watching -= 1
            self._lines.remove(lines)
