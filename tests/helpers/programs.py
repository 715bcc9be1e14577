"""Servers that others wrote, as processes of their own on loopback: nginx, HAProxy, tinyproxy, squid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_READY_S = 20.0
_CHECK_S = 0.02


def unused_port() -> int:
    """A port on which nothing listens at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def program(
    words: Sequence[object], port: int, log: Path, *, ready_s: float = _READY_S, **variables: str
) -> Iterator[None]:
    """Run a program that listens on ``port``, from when it does until the block ends."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
        )
    try:
        _wait_for(process, port, log, ready_s)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path, ready_s: float) -> None:
    for _ in range(int(ready_s / _CHECK_S)):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(_CHECK_S)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"it doesn't listen:\n{log.read_text('utf-8', 'replace')[-3000:]}")


@contextmanager
def nginx(folder: Path, upstream: str, zone: str, rule: str) -> Iterator[str]:
    """nginx before ``upstream`` with a zone and a rule of its limits; its URL. It logs to access.log."""
    port = unused_port()
    (folder / "nginx.conf").write_text(
        f"""
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log {folder}/access.log combined;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    scgi_temp_path {folder}; uwsgi_temp_path {folder};
    {zone};
    upstream api {{ server {upstream.partition("//")[2]}; keepalive 100; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024; keepalive_requests 1000000;
        location / {{
            {rule};
            proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection "";
        }}
    }}
}}
""",
        "utf-8",
    )
    words = ("nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", f"{folder}/error.log")
    with program(words, port, folder / "nginx.out"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def haproxy(folder: Path, upstream: str, store: str, rule: str) -> Iterator[str]:
    """HAProxy before ``upstream`` with a stick table; its URL."""
    port = unused_port()
    (folder / "haproxy.cfg").write_text(
        f"""
global
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend api
    bind 127.0.0.1:{port}
    stick-table type integer size 10 expire 60s store {store}
    http-request track-sc0 int(1)
    {rule}
    default_backend simulator
backend simulator
    server one {upstream.partition("//")[2]}
""",
        "utf-8",
    )
    with program(("haproxy", "-f", folder / "haproxy.cfg"), port, folder / "haproxy.out"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def tinyproxy(folder: Path, login: str = "") -> Iterator[int]:
    """tinyproxy; its port. ``login`` is a name and a password, divided by a space."""
    port = unused_port()
    (folder / "tinyproxy.conf").write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\nLogLevel Connect\n"
        + (f"BasicAuth {login}\n" if login else ""),
        "utf-8",
    )
    words = ("tinyproxy", "-d", "-c", folder / "tinyproxy.conf")
    with program(words, port, folder / "tinyproxy.out"):
        yield port


@contextmanager
def squid(rules: str) -> Iterator[int]:
    """squid with these lines of its configuration; its port.

    In them, ``{folder}`` stands for its own, where ``logins`` has me with the password secret. It
    knows api.example.invalid as this machine.
    """
    port = unused_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # it gives up root's rights
        (folder / "hosts").write_text("127.0.0.1 api.example.invalid\n", "utf-8")
        (folder / "logins").write_text("me:$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0\n", "utf-8")
        (folder / "squid.conf").write_text(
            f"""
http_port 127.0.0.1:{port}
pid_filename {folder}/squid.pid
cache_log {folder}/cache.log
hosts_file {folder}/hosts
access_log none
cache deny all
shutdown_lifetime 0 seconds
visible_hostname test
{rules.format(folder=folder)}
""",
            "utf-8",
        )
        words = ("squid", "-N", "-f", folder / "squid.conf")
        with program(words, port, folder / "squid.out"):
            yield port
