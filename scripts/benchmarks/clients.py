"""The clients to compare with: ``python -m benchmarks.clients NAME URL BODY COUNT --threads N``.

Each sends the first line of the file ``BODY`` ``COUNT`` times, reads each answer, looks at nothing but its
status, and writes nothing. ``lm_deluge`` sends that line's prompt, and does what it does for its users. All
check the server's certificate against the file that SSL_CERT_FILE and REQUESTS_CA_BUNDLE name.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-benchmark"}
Work = Callable[[Iterator[int]], None]


def check(status: int | None) -> None:
    """Anything but 200 ends the run."""
    if status != 200:
        raise RuntimeError(f"HTTP status {status}")


def run_threads(work: Work, count: int, threads: int) -> None:
    """Let ``threads`` share ``count`` requests."""
    numbers = iter(range(count))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, numbers) for _ in range(threads)]:
            done.result()


def requests_post(url: str, body: bytes, threads: int) -> Work:
    """``requests.post``: a connection and a handshake for each."""
    import requests

    def work(numbers: Iterator[int]) -> None:
        for _ in numbers:
            check(requests.post(url, data=body, headers=HEADERS, timeout=600).status_code)

    return work


def session_post(url: str, body: bytes, threads: int) -> Work:
    """One ``requests.Session`` a thread."""
    import requests

    def work(numbers: Iterator[int]) -> None:
        with requests.Session() as session:
            for _ in numbers:
                check(session.post(url, data=body, headers=HEADERS, timeout=600).status_code)

    return work


def prepared_once(url: str, body: bytes, threads: int) -> Work:
    """One session a thread, a request prepared once whose body is exchanged, and settings read once."""
    import requests

    def work(numbers: Iterator[int]) -> None:
        with requests.Session() as session:
            request = requests.Request("POST", url, headers=HEADERS, data=body)
            prepared = session.prepare_request(request)
            settings: Any = session.merge_environment_settings(url, {}, None, None, None)
            for _ in numbers:
                prepared.body = bytes(body)
                response = session.send(prepared, timeout=600, allow_redirects=False, **settings)
                check(response.status_code)

    return work


def urllib3_pool(url: str, body: bytes, threads: int) -> Work:
    """One ``urllib3.PoolManager`` for all threads."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=threads, block=True, ca_certs=os.environ["SSL_CERT_FILE"])

    def work(numbers: Iterator[int]) -> None:
        for _ in numbers:
            check(pool.request("POST", url, body=body, headers=HEADERS, timeout=600).status)

    return work


def http_client(url: str, body: bytes, threads: int) -> Work:
    """The standard library's ``http.client``, a connection a thread."""
    from http.client import HTTPSConnection

    parts, context = urlsplit(url), ssl.create_default_context()

    def work(numbers: Iterator[int]) -> None:
        host = parts.hostname or ""
        connection = HTTPSConnection(host, parts.port, context=context, timeout=600)
        for _ in numbers:
            connection.request("POST", parts.path, body, HEADERS)
            response = connection.getresponse()
            response.read()
            check(response.status)
        connection.close()

    return work


def pyreqwest_client(url: str, body: bytes, threads: int) -> Work:
    """One blocking client of ``pyreqwest`` for all threads: Rust's ``reqwest`` and ``rustls``."""
    from datetime import timedelta

    from pyreqwest.client import SyncClientBuilder

    builder = SyncClientBuilder().default_headers(HEADERS).timeout(timedelta(seconds=600))
    builder = builder.add_root_certificate_pem(Path(os.environ["SSL_CERT_FILE"]).read_bytes())
    client = builder.http1_only().no_proxy().build()

    def work(numbers: Iterator[int]) -> None:
        for _ in numbers:
            response = client.post(url).body_bytes(body).build().send()
            response.bytes()
            check(response.status)

    return work


def lm_deluge(url: str, body: bytes, count: int, tasks: int) -> None:
    """``lm_deluge``: a list of prompts, so many in flight, limits that never bind, one attempt."""
    from lm_deluge import LLMClient
    from lm_deluge.models import register_model

    base, key = url.removesuffix("/chat/completions"), "OPENAI_API_KEY"
    request = json.loads(body)
    register_model(id="benchmark", name=request["model"], api_base=base, api_key_env_var=key)
    limits = {"max_requests_per_minute": 10**9, "max_tokens_per_minute": 10**12}
    once = {"max_attempts": 1, "request_timeout": 600}
    client = LLMClient("benchmark", max_concurrent_requests=tasks, **limits, **once)
    prompts = [request["messages"][0]["content"]] * count
    for response in client.process_prompts_sync(prompts, show_progress=False):
        check(response.status_code)


def aiohttp_tasks(url: str, body: bytes, count: int, tasks: int) -> None:
    """``aiohttp``: so many tasks in one event loop."""
    import asyncio

    asyncio.run(_aiohttp_tasks(url, body, count, tasks))


async def _aiohttp_tasks(url: str, body: bytes, count: int, tasks: int) -> None:
    import asyncio

    import aiohttp

    numbers = iter(range(count))
    connector = aiohttp.TCPConnector(limit=tasks, ssl=ssl.create_default_context())

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in numbers:
            async with session.post(url, data=body, headers=HEADERS) as response:
                await response.read()
                check(response.status)

    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(tasks)))


THREADED: dict[str, Callable[[str, bytes, int], Work]] = {
    "requests_post": requests_post,
    "session_post": session_post,
    "prepared_once": prepared_once,
    "urllib3_pool": urllib3_pool,
    "http_client": http_client,
    "pyreqwest": pyreqwest_client,
}
WHOLE: dict[str, Callable[[str, bytes, int, int], None]] = {
    "aiohttp": aiohttp_tasks,
    "lm_deluge": lm_deluge,
}


def main() -> int:
    """Run one of the clients."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[*THREADED, *WHOLE])
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=16)
    flags = parser.parse_args()
    with flags.body.open("rb") as file:
        body = file.readline().rstrip()
    if flags.name in WHOLE:
        WHOLE[flags.name](flags.url, body, flags.count, flags.threads)
    else:
        work = THREADED[flags.name](flags.url, body, flags.threads)
        run_threads(work, flags.count, flags.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
