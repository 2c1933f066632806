"""A network in which names have the addresses that a test gives them, all of them on loopback."""

import socket
from collections.abc import Mapping

import httpcore


class Network(httpcore.AsyncNetworkBackend):
    """Resolves names from a table and leads connections to addresses to servers of the test.

    Args:
        names: addresses of each name.
        servers: ``host:port`` on loopback behind each address.
    """

    def __init__(self, names: Mapping[str, list[str]], servers: Mapping[str, str]) -> None:
        self._names = names
        self._servers = servers
        self._inner = httpcore.AnyIOBackend()
        self.dialled: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        if host in self._names:
            return self._names[host]
        if host.replace(".", "").isdigit():
            return [host]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def connect_tcp(
        self,
        host,
        port,
        timeout=None,  # noqa: ASYNC109 - the library's signature
        local_address=None,
        socket_options=None,
    ):
        self.dialled.append(host)
        address, _, real = self._servers.get(host, f"{host}:{port}").rpartition(":")
        return await self._inner.connect_tcp(address, int(real), timeout, local_address)

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError
