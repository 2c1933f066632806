"""A process that opens watches and throws away what they send: what watching alone costs.

``python -m tests.bench.reader KUBECONFIG URI…``
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

CHUNK = 65536


async def read(server: str, token: str, tls: ssl.SSLContext, uri: str) -> None:
    """Open one watch from now on, and read it until the process ends."""
    address = urlsplit(server)
    path = re.sub(r"[?&](resourceVersion|resourceVersionMatch|sendInitialEvents)=[^&]*", "", uri)
    path = path if "?" in path else path.replace("&", "?", 1)
    path = re.sub(r"timeoutSeconds=\d+", "timeoutSeconds=3600", path)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=tls)
    request = (
        f"GET {path}&resourceVersion=0 HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {token}\r\nAccept: application/json\r\n\r\n"
    )
    writer.write(request.encode())
    await writer.drain()
    answer = await reader.readline()
    if b" 200 " not in answer:
        raise SystemExit(f"{path}: {answer!r}")
    while await reader.read(CHUNK):
        pass


async def main(config: dict[str, Any], uris: list[str]) -> None:
    """Open all watches."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    tls = ssl.create_default_context(cadata=authority)
    async with asyncio.TaskGroup() as tasks:
        for uri in uris:
            tasks.create_task(read(cluster["server"], user["token"], tls, uri))


if __name__ == "__main__":
    asyncio.run(main(yaml.safe_load(Path(sys.argv[1]).read_text()), sys.argv[2:]))
