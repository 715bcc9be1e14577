"""nginx with TLS on loopback, as the server that is faster than any client here.

It answers from memory, keeps its connections, and is one process. Its folder, its configuration and its
certificates are made for one run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError, end

PACKAGES = ("nginx-light", "libnginx-mod-http-echo")
CONNECTIONS = 8192
LARGE_BYTES = 1_000_000
_SECONDS_TO_START = 20
_TEXT = (
    "A token bucket fills at a steady rate up to its size. Each request takes what it costs, and waits if "
    "there is less. So short bursts pass at once, and the long-run rate never exceeds the limit."
)
_OPENAI_HEADERS = {
    "x-request-id": "req_$request_id",
    "openai-processing-ms": "412",
    "openai-version": "2020-10-01",
}
_LIMIT_HEADERS = {
    "x-ratelimit-limit-requests": "30000000",
    "x-ratelimit-limit-tokens": "15000000000",
    "x-ratelimit-remaining-requests": "29999999",
    "x-ratelimit-remaining-tokens": "14999999900",
    "x-ratelimit-reset-requests": "2ms",
    "x-ratelimit-reset-tokens": "0s",
}
_CONFIG = """
daemon off;
master_process off;
load_module {module};
pid nginx.pid;
error_log error.log warn;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    server_tokens off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 64m;
    client_body_buffer_size 256k;
    client_body_temp_path bodies;
    proxy_temp_path unused1;
    fastcgi_temp_path unused2;
    uwsgi_temp_path unused3;
    scgi_temp_path unused4;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
{headers}
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        location = /v1/chat/completions {{ return 200 '{answer}'; }}
        location = /with-limits/v1/chat/completions {{
{headers}
{limit_headers}
            return 200 '{answer}';
        }}
        location = /large/v1/chat/completions {{ rewrite ^ /large.json last; }}
        location = /large.json {{ root files; error_page 405 =200 /large.json; }}
    }}
    server {{
        listen 127.0.0.1:{slow_port} ssl backlog=4096;
        location / {{ echo_read_request_body; echo_sleep {slow_s}; echo '{answer}'; }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location / {{ stub_status; }}
    }}
}}
"""
_CA_CONFIG = """
[req]
distinguished_name = name
prompt = no
x509_extensions = ca
[name]
CN = benchmark
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1, DNS:localhost
"""


def answer(text: str = _TEXT) -> str:
    """A chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    usage = {"prompt_tokens": 74, "completion_tokens": 38, "total_tokens": 112}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps(
        {"id": "chatcmpl-BenchmarkAnswer0123456789", "object": "chat.completion"}
        | {"created": 1750000000, "model": "gpt-4-turbo-2024-04-09", "choices": [choice]}
        | {"usage": usage, "service_tier": "default", "system_fingerprint": "fp_0123456789"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs. ``ca`` is the file that its certificate is to be checked by."""

    port: int
    slow_port: int
    status_port: int
    slow_s: float
    folder: Path

    @property
    def ca(self) -> Path:
        """The certificate authority that signed the server's certificate."""
        return self.folder / "ca.pem"

    def url(self, location: str = "") -> str:
        """Where requests are answered at once; ``/with-limits``, ``/large`` are further locations."""
        return f"https://127.0.0.1:{self.port}{location}/v1/chat/completions"

    @property
    def slow_url(self) -> str:
        """Where each answer takes ``slow_s`` seconds; a port of its own, since the cookbook's script
        knows no other path."""
        return f"https://127.0.0.1:{self.slow_port}/v1/chat/completions"

    def variables(self) -> dict[str, str]:
        """What tells clients about the certificate, and a key."""
        ca = str(self.ca)
        return {"REQUESTS_CA_BUNDLE": ca, "SSL_CERT_FILE": ca, "OPENAI_API_KEY": "sk-benchmark"}

    def counts(self) -> tuple[int, int]:
        """Connections and requests so far; this call is one of each."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.status_port}/", timeout=30) as response:
            text = response.read().decode()
        found = re.search(r"requests\s+(\d+) (\d+) (\d+)", text)
        if found is None:
            raise BenchmarkError(f"nginx's status can't be read: {text!r}")
        return int(found[1]), int(found[3])


def install() -> Path:
    """Make sure that nginx is there, and give its echo module."""
    if shutil.which("nginx") is None or _echo_module() is None:
        command = ["apt-get", "-qq", "install", "--yes", "-o", "DPkg::Lock::Timeout=300", *PACKAGES]
        hint = f"nginx and its echo module are needed: {' '.join(command)}"
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise BenchmarkError(hint)
        if _apt(command) is not None:
            _apt(["apt-get", "-qq", "update"])
            error = _apt(command)
            if error is not None:
                raise BenchmarkError(f"{hint}\n{error}")
    module = _echo_module()
    if module is None:
        raise BenchmarkError(f"nginx has no echo module: install {PACKAGES[1]}")
    return module


def _apt(command: list[str]) -> str | None:
    """Run ``command`` without questions, and without starting a service; what it said if it failed."""
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True)
    return done.stderr if done.returncode else None


def _echo_module() -> Path | None:
    built = subprocess.run(["nginx", "-V"], capture_output=True, text=True).stderr
    found = re.search(r"--modules-path=(\S+)", built)
    module = Path(found[1] if found else "/usr/lib/nginx/modules", "ngx_http_echo_module.so")
    return module if module.exists() else None


def make_certificates(folder: Path) -> None:
    """``ca.pem``, and ``server.pem`` with ``server.key`` signed by it."""
    (folder / "openssl.cnf").write_text(_CA_CONFIG, "utf-8")
    new = "req -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for words in (
        f"{new} -x509 -subj /CN=benchmark-ca -days 2 -keyout ca.key -out ca.pem",
        f"{new} -subj /CN=127.0.0.1 -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile openssl.cnf -extensions server -out server.pem",
    ):
        command = ["openssl", *words.split()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchmarkError(f"openssl {words}: {done.stderr}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _headers(headers: dict[str, str]) -> str:
    return "\n".join(f'    add_header {name} "{value}";' for name, value in headers.items())


def _configure(folder: Path, module: Path, slow_s: float) -> Server:
    ports = _free_ports(3)
    text = _CONFIG.format(
        module=module,
        files=CONNECTIONS + 64,
        connections=CONNECTIONS,
        headers=_headers(_OPENAI_HEADERS),
        limit_headers=_headers(_LIMIT_HEADERS),
        answer=answer(),
        port=ports[0],
        slow_port=ports[1],
        status_port=ports[2],
        slow_s=slow_s,
    )
    (folder / "nginx.conf").write_text(text, "utf-8")
    return Server(
        port=ports[0], slow_port=ports[1], status_port=ports[2], slow_s=slow_s, folder=folder
    )


def _is_up(server: Server, process: subprocess.Popen[bytes]) -> bool:
    """True once it listens, false if it ended."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.status_port), timeout=5).close()
            return True
        except OSError:
            time.sleep(0.01)
    return False


@contextmanager
def nginx(folder: Path, slow_s: float = 2.0) -> Iterator[Server]:
    """A server that has ``folder`` to itself; it is ended behind the block."""
    module = install()
    folder.mkdir()
    (folder / "files").mkdir()
    text = "x" * (LARGE_BYTES - len(answer("")))
    (folder / "files" / "large.json").write_text(answer(text), "utf-8")
    make_certificates(folder)
    command = ["nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "error.log"]
    for _ in range(3):  # somebody else may take the port before nginx does
        server = _configure(folder, module, slow_s)
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            if _is_up(server, process):
                yield server
                return
        finally:
            end(process, 10)
    raise BenchmarkError(f"nginx doesn't start:\n{(folder / 'error.log').read_text('utf-8')}")
