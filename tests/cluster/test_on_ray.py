"""Jobs on an embedded Ray, with the real command: sockets, keys, leftovers, and kills."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_jobs import parts, write_requests
from commands import command, environment, run
from listeners import descendants, listening_addresses
from raw_server import RawServer, Room, Visit, answer_all
from services import NO_LIMITS, rows

from parallel_processor.cli.commands import build_ray_parser
from parallel_processor.cluster.job import KeySource
from parallel_processor.cluster.on_ray import OnRay
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Options, Settings

pytest.importorskip("ray")
KEY = "sk-of-this-test-alone"
IN_FLIGHT = 8
README = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")

pytestmark = pytest.mark.timeout(300)  # Ray takes a while to start on a busy machine


def words(folder: Path, server: RawServer, *more: object) -> list[str]:
    """The command for the requests of the folder."""
    return command(
        *(
            "run-on-ray",
            "--requests_filepath",
            folder / "in.jsonl",
            "--save_filepath",
            folder / "out",
        ),
        *("--request_url", f"{server.url}/v1/embeddings", "--max_workers", IN_FLIGHT),
        *("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf", "--no_progress"),
        *("--num_workers", 2, "--block_bytes", 2000, *more),
    )


@contextmanager
def started(line: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process; it is killed at the end, if it still runs."""
    with subprocess.Popen(
        line, env=environment(**variables), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def actors(pid: int, name: bytes = b"BlockActor") -> list[int]:
    """The processes of the workers below a driver, or of other actors."""
    found = []
    for each in descendants(pid):
        if Path(f"/proc/{each}/cmdline").read_bytes().startswith(b"ray::" + name):
            found.append(each)
    return found


def sent_again(server: RawServer) -> int:
    """How many requests came more than once."""
    return sum(count - 1 for count in Counter(server.bodies).values())


def test_the_embedded_ray_is_quiet_and_leaves_nothing(tmp_path: Path) -> None:
    """It listens on loopback alone; no key is in its files or arguments; its folder is gone at the end."""
    write_requests(tmp_path, rows(200))
    home = tmp_path / "t"
    home.mkdir()
    room = Room(50)
    with RawServer(room) as server:
        # The folder of a process that is gone, as kill -9 leaves it.
        dead = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
        )
        stale = Path("/tmp") / f"pp-ray-{int(dead.stdout)}-stale"
        stale.mkdir()
        with started(words(tmp_path, server), OPENAI_API_KEY=KEY) as process:
            room.wait_for(2 * IN_FLIGHT)
            pids = descendants(process.pid)
            assert len(actors(process.pid)) == 2
            addresses = listening_addresses(pids)
            (folder,) = Path("/tmp").glob(f"pp-ray-{process.pid}-*")
            files = [path for path in folder.rglob("*") if path.is_file()]
            leaks = [path for path in files if KEY.encode() in path.read_bytes()]
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
            niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in actors(process.pid)}
            room.opened.set()
            _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        assert addresses == {"127.0.0.1"}
        assert len(files) > 5 and leaks == []
        assert not any(KEY.encode() in line for line in lines)
        assert niceness == {os.getpriority(os.PRIO_PROCESS, os.getpid())}
        assert all(f"Bearer {KEY}" in head for head in server.heads)
    assert not folder.exists() and not stale.exists()
    assert [record[0] for record in parts(tmp_path)] == rows(200)
    assert sent_again(server) == 0
    assert all(" INFO " in line or not line.startswith(("[", "20")) for line in errors.splitlines())
    assert "results are in the parts of" in errors and "200 answered" in errors


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """``kill -9`` of an actor: 0 lines lost, 0 doubled; sent twice is what was in flight."""
    write_requests(tmp_path, rows(600))
    room = Room(300)
    with RawServer(room) as server:
        with started(words(tmp_path, server)) as process:
            room.wait_for(2 * IN_FLIGHT)
            os.kill(actors(process.pid)[0], signal.SIGKILL)
            room.opened.set()
            _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        assert sent_again(server) <= 2 * IN_FLIGHT + 32
    assert [record[0] for record in parts(tmp_path)] == rows(600)
    assert "600 answered, 0 failed" in errors and "workers lost: 1" in errors


def test_a_killed_driver_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    """``kill -9`` of the driver, and the command again: 0 lost, 0 doubled, the folder of Ray is removed."""
    write_requests(tmp_path, rows(600))
    room = Room(300)
    with RawServer(room) as server:
        with started(words(tmp_path, server)) as process:
            room.wait_for(2 * IN_FLIGHT)
            workers = actors(process.pid)
            process.kill()
            process.wait()
            room.opened.set()
        left = Path("/tmp").glob(f"pp-ray-{process.pid}-*")
        again = run(*words(tmp_path, server)[3:])
        assert again.returncode == 0, again.stderr
        assert sent_again(server) <= 2 * 2 * IN_FLIGHT + 32
        assert list(left) == []
    assert len(workers) == 2
    assert [record[0] for record in parts(tmp_path)] == rows(600)
    checked = run("verify", *words(tmp_path, server)[4:10])
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"answered 600\n", checked.stdout)


def test_sigterm_ends_the_command_in_order(tmp_path: Path) -> None:
    """Ray's own handler of SIGTERM is not in its way (ray#17308): exit code 143, and nothing is lost."""
    write_requests(tmp_path, rows(300))
    room = Room(100)
    with RawServer(room) as server:
        with started(words(tmp_path, server)) as process:
            room.wait_for(2 * IN_FLIGHT)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            for line in process.stderr:
                if "waiting for requests in flight" in line:
                    break
            room.opened.set()
            _, errors = process.communicate(timeout=150)
        assert process.returncode == 143, errors
        assert "stopped: interrupted by SIGTERM" in errors
        again = run(*words(tmp_path, server, "--logging_level", 30)[3:])
        assert (again.returncode, again.stderr) == (0, "")
        assert sent_again(server) == 0
    assert [record[0] for record in parts(tmp_path)] == rows(300)


def test_all_workers_keep_one_limit_also_when_its_actor_is_killed(tmp_path: Path) -> None:
    """Two workers together keep to the limit, and go on after ``kill -9`` of the actor that holds it."""
    write_requests(tmp_path, rows(300))
    came_at: list[float] = []
    enough = threading.Event()

    def script(visit: Visit) -> None:
        while visit.read():
            came_at.append(time.monotonic())
            if len(came_at) >= 60:
                enough.set()
            visit.answer()

    with RawServer(script) as server:
        with started(words(tmp_path, server, "--max_requests_per_minute", 3000)) as process:
            assert enough.wait(60)
            (limiter,) = actors(process.pid, b"BucketActor")
            os.kill(limiter, signal.SIGKILL)
            _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        assert sent_again(server) == 0
    assert "300 answered" in errors and "3,000 requests/min" in errors
    # 50 a second, what may go out at once (0.5 s), and what is leased and used late (0.5 s).
    for first, at in enumerate(came_at):
        assert sum(at <= other < at + 3.0 for other in came_at[first:]) <= 50 * (3.0 + 0.5 + 0.5)
    assert [record[0] for record in parts(tmp_path)] == rows(300)


@pytest.mark.slow
def test_a_lost_node_costs_what_was_in_flight(tmp_path: Path) -> None:
    """``kill -9`` of one of two nodes: its blocks go to workers of the other, and no line is lost."""
    write_requests(tmp_path, rows(600))
    program = tmp_path / "nodes.py"
    program.write_text(NODES, "utf-8")
    room = Room(300)
    with RawServer(room) as server:
        line = [sys.executable, str(program), str(tmp_path), f"{server.url}/v1/embeddings"]
        checks = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        with started(line, **checks) as process:
            room.wait_for(2 * IN_FLIGHT)
            process.send_signal(signal.SIGUSR1)
            assert process.stderr is not None
            assert any("was lost" in told for told in process.stderr)
            room.opened.set()
            _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        assert "workers lost: 1" in errors
        assert sent_again(server) <= 2 * 2 * IN_FLIGHT + 32
    assert [record[0] for record in parts(tmp_path)] == rows(600)


# Two nodes on this machine; one of them is killed by a signal.
NODES = """
import logging, math, os, signal, sys
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster
from parallel_processor import Limits
from parallel_processor.cluster.on_ray import process_on_ray

ray_constants.ENABLE_RAY_CLUSTER = False
node = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1, **node) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)


def kill(*_):
    os.kill(nodes[1].all_processes["raylet"][0].process.pid, signal.SIGKILL)


signal.signal(signal.SIGUSR1, kill)
logging.basicConfig()
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
summary = process_on_ray(
    sys.argv[1] + "/in.jsonl", sys.argv[1] + "/out", request_url=sys.argv[2], limits=limits,
    num_workers=2, max_workers=8, block_bytes=2000,
)
print(summary, file=sys.stderr)
ray.shutdown()
cluster.shutdown()
"""


# Two nodes on this machine, until stdin ends. ``ENABLE_RAY_CLUSTER``: else they are not on loopback alone.
TWO_NODES = """
import sys
from ray._private import ray_constants
from ray.cluster_utils import Cluster

ray_constants.ENABLE_RAY_CLUSTER = False
node = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1, **node)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
ON_LOOPBACK = """
import sys
from ray._private import ray_constants
from parallel_processor.cli.main import main

ray_constants.ENABLE_RAY_CLUSTER = False
sys.exit(main())
"""


def test_the_command_runs_on_a_cluster(tmp_path: Path) -> None:
    """Both nodes work, with another working directory and no key; failures and the key's lack are told."""

    def script(visit: Visit) -> None:
        while visit.read():
            bad = b'"text 7"' in visit.body
            visit.answer(
                *([b'{"error": "no"}'] if bad else []), status="400 No" if bad else "200 OK"
            )

    def on_cluster(*more: object) -> subprocess.CompletedProcess[str]:
        # Two nodes send: each has one CPU, and "auto" counts them.
        line = [sys.executable, "-c", ON_LOOPBACK, "run-on-ray", "--address", address]
        line += ["--requests_filepath", "in.jsonl", *map(str, more), "--block_bytes", "2000"]
        return subprocess.run(
            line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=150
        )

    write_requests(tmp_path, rows(300))
    with (
        RawServer(script) as server,
        subprocess.Popen(
            [sys.executable, "-c", TWO_NODES],
            cwd="/",
            env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as cluster,
    ):
        assert cluster.stdout is not None and cluster.stdin is not None
        address = cluster.stdout.readline().strip()
        url = f"{server.url}/v1/embeddings"
        done = on_cluster("--errors_filepath", "errors", "--request_url", url)
        keyless = on_cluster(
            "--save_filepath", "other", "--request_url", "https://api.example.com/v1/embeddings"
        )
        cluster.stdin.close()
        assert cluster.wait(60) == 0
    assert done.returncode == 1, done.stderr
    assert "299 answered, 1 failed" in done.stderr
    assert "2 workers" in done.stderr and "failures in those of errors" in done.stderr
    flags = (
        "--requests_filepath",
        tmp_path / "in.jsonl",
        "--save_filepath",
        tmp_path / "in_results",
    )
    checked = run("verify", *flags, "--errors_filepath", tmp_path / "errors")
    assert re.search(r"answered 299\n +failed 1\n +missing 0\n", checked.stdout)
    assert keyless.returncode == 2, keyless.stderr
    assert keyless.stderr.splitlines()[-1].endswith(
        "the variable OPENAI_API_KEY is not set where a worker runs"
    )


def test_a_long_name_of_the_temporary_folder(tmp_path: Path) -> None:
    """The names of Ray's sockets stay short enough (ray#7724), and a wrong key has exit code 3."""

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(b'{"error": {"message": "bad key"}}', status="401 Unauthorized")

    home = tmp_path / ("a" * 50) / ("b" * 50)
    home.mkdir(parents=True)
    write_requests(tmp_path, rows(100))
    with RawServer(script) as server:
        found = run(*words(tmp_path, server)[3:], TMPDIR=str(home))
    assert found.returncode == 3, found.stderr
    assert "stopped: HTTP 401" in found.stderr


def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    """It is one line, with exit code 2, and the command itself needs no Ray."""
    write_requests(tmp_path, rows(1))
    with RawServer(answer_all) as server:
        program = (
            "import sys; sys.modules['ray'] = None; from parallel_processor.cli.main import main; "
        )
        line = [sys.executable, "-c", program + "sys.exit(main())", *words(tmp_path, server)[3:]]
        found = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=150)
    assert found.returncode == 2
    assert found.stderr == (
        "parallel-processor: error: Ray is missing: pip install 'parallel-api-processor[ray]'\n"
    )


def test_the_readmes_program_runs(tmp_path: Path) -> None:
    """It sends the file, and its summary counts blocks; the program imports Ray for itself, too."""
    (block,) = re.findall(r"```python ray\n(.*?)```", README, re.DOTALL)
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    with RawServer(answer_all) as server:
        account = f"account = dict(request_url='{server.url}/v1/embeddings')\n"
        program = f"import ray\n{account}{block}print(summary.answered, summary.blocks)\n"
        found = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert (found.returncode, found.stdout) == (0, "20 1\n"), found.stderr


def test_the_readmes_manifest_runs_the_command() -> None:
    """It is YAML, and the parser takes its command; each node finds the key by its name."""
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    spec = yaml.safe_load(block)["spec"]
    flags = build_ray_parser().parse(shlex.split(spec["entrypoint"])[2:])
    assert (flags.address, flags.num_workers) == ("auto", 8)
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"][0]["name"] == "OPENAI_API_KEY"


def test_a_cluster_gets_no_key() -> None:
    """With an address, a key or a login must be named by where the nodes find it."""
    url = "https://user:secret@api.example.com/v1/embeddings"
    plain = {"request_url": "http://127.0.0.1:1/", "limiter": "redis://:secret@127.0.0.1/0"}
    for settings in ({"api_key": KEY}, {"request_url": url}, plain):
        with pytest.raises(ConfigurationError, match="name a variable") as caught:
            OnRay("in.jsonl", address="auto", **settings)  # type: ignore[arg-type]
        assert KEY not in str(caught.value) and "secret" not in str(caught.value)


def test_no_secret_is_pickled() -> None:
    """What the driver sends to its workers has neither key nor login, but where they are."""
    url = "http://user:secret@127.0.0.1:1/v1/embeddings"
    job = OnRay("in.jsonl", request_url=url, limits=NO_LIMITS)._job
    assert b"secret" not in pickle.dumps((job.settings, job.key)) and job.key.login_variable
    limiter = "redis://:secret@127.0.0.1/0"
    job = OnRay("in.jsonl", request_url="http://127.0.0.1:1/", limiter=limiter)._job
    assert b"secret" not in pickle.dumps((job.settings, job.key)) and job.key.limiter_variable
    job = OnRay("in.jsonl", api_key=KEY, request_url="http://127.0.0.1:1/")._job
    assert KEY.encode() not in pickle.dumps((job.settings, job.key)) and job.key.variable
    job = OnRay(
        "in.jsonl",
        request_url="http://127.0.0.1:1/",
        api_key=["secret-1", "secret-2"],
        api_keys={"h.example": "secret-3"},
        headers={"X-Key": "secret-4"},
        query={"code": "secret-5"},
    )._job
    assert b"secret-" not in pickle.dumps((job.settings, job.key))


def test_workers_find_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several keys, those for other hosts, headers and parameters, and a command, which they run."""
    settings: Settings = {
        "request_url": "http://127.0.0.1:1/",
        "api_keys": {"h.example": "c"},
        "headers": {"X-Key": "d", "X-Team": "e"},
        "query": {"code": "f"},
    }
    named = KeySource(host_variables={"other.example": "OTHER_KEY"})
    for name, value in {"OTHER_KEY": "g"}.items():
        monkeypatch.setenv(name, value)
    made = OnRay("in.jsonl", key=named, api_key=["a", "b"], **settings)
    for name, value in made._secrets.items():
        monkeypatch.setenv(name, value)
    found = made._job.key.complete(made._job.settings)
    options = Options(**found)
    assert options.api_key == ("a", "b")
    assert options.api_keys == {"h.example": "c", "other.example": "g"}
    assert (options.headers, options.query) == (settings["headers"], settings["query"])
    command = OnRay("in.jsonl", key=KeySource(command="echo h"), request_url="http://127.0.0.1:1/")
    key = Options(**command._job.key.complete(command._job.settings)).api_key
    assert callable(key) and key() == "h"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_cost": 1.0},
        {"max_total_tokens": 10},
        {"max_seconds": 5},
        {"max_failures": 0},
        {"prices": {"m": {"input": 1, "output": 0}}},
    ],
)
def test_workers_have_no_budget(settings: Settings) -> None:
    """Each of them would have the whole of it."""
    (name,) = settings
    with pytest.raises(
        ConfigurationError, match=rf"{name} (can't bound what several|are of no use)"
    ):
        OnRay("in.jsonl", request_url="http://127.0.0.1:1/", **settings)


def test_a_function_is_no_key_of_workers() -> None:
    """What it knows would be seen."""
    with pytest.raises(ConfigurationError, match="api_key can't be a function on Ray"):
        OnRay("in.jsonl", request_url="http://127.0.0.1:1/", api_key=lambda: "k")


def test_what_keeps_workers_from_being_made_is_told(tmp_path: Path) -> None:
    """Not by Ray's text, which hides the reason: one line, with exit code 2."""
    write_requests(tmp_path, rows(3))
    with RawServer(answer_all) as server:
        found = run(*words(tmp_path, server, "--limiter", "redis://127.0.0.1:1/0")[3:])
    assert found.returncode == 2, found.stderr
    assert "error: " in found.stderr.splitlines()[-1] and "Ray" not in found.stderr
    assert server.bodies == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:none"])
def test_an_address_where_no_ray_is(tmp_path: Path, address: str) -> None:
    """It is said at once, with what the address is; Ray itself tries for minutes."""
    write_requests(tmp_path, rows(1))
    url = "http://127.0.0.1:1/"
    with pytest.raises(ConfigurationError, match="ray start --head") as error:
        OnRay(str(tmp_path / "in.jsonl"), address=address, request_url=url).process()
    assert f"can't connect to Ray at {address}: " in str(error.value)


def test_values_that_cannot_work() -> None:
    """A number of workers or bytes must be above 0."""
    for name in ("num_workers", "block_bytes"):
        with pytest.raises(ConfigurationError, match=f"{name} must be a whole number above 0"):
            OnRay("in.jsonl", request_url="http://127.0.0.1:1/", **{name: 0})  # type: ignore[arg-type]
