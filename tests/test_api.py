"""The functions, and their agreement with the cookbook's script."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from raw_server import OK, RawServer, answer_all, header_of
from services import NO_LIMITS

import parallel_processor
from parallel_processor import ConfigurationError, process_api_requests_from_file, process_file

ROOT = Path(parallel_processor.__file__).resolve().parent.parent
# What only some programs need, and takes a while to import.
BY_NEED = ("argparse", "email.utils", "lzma", "multiprocessing", "pickle", "requests", "ssl")
BY_NEED += ("subprocess", "tenacity", "tiktoken", "tqdm", "urllib3", "uuid")


def loaded_by(code: str, folder: Path) -> set[str]:
    """Which of ``BY_NEED`` a program has imported at its end."""
    program = f"{code}\nimport sys\nprint(*(name for name in {BY_NEED!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_little(tmp_path: Path) -> None:
    """Neither the import nor a Processor loads what waits for a run, a failure, a bar or a count."""
    assert loaded_by("import parallel_processor", tmp_path) == set()
    code = "from parallel_processor import Processor\nProcessor(api_key='sk-1')"
    assert loaded_by(code, tmp_path) == set()
    assert loaded_by("import parallel_processor.cli.main", tmp_path) == {"argparse"}


def test_a_run_that_goes_well_loads_no_bar_and_no_retries(tmp_path: Path) -> None:
    """tqdm is loaded for a bar only, tenacity after a failure only."""
    write_lines(tmp_path / "in.jsonl", [{"n": 1}])
    with RawServer(answer_all) as server:
        words = f"--requests_filepath in.jsonl --request_url {server.url}/v1/embeddings"
        code = f"""
from parallel_processor.cli.main import main
assert main({words.split()!r}) == 0
"""
        found = loaded_by(code, tmp_path)
    assert not found & {"multiprocessing", "tenacity", "tqdm"}
    assert {"requests", "tiktoken"} <= found


def test_a_worker_process_loads_what_sends(tmp_path: Path) -> None:
    """A worker process has what sends, and nothing that limits, counts, retries, writes or shows."""
    found = loaded_by("import parallel_processor.workers.child", tmp_path)
    assert "requests" in found
    assert not found & {"argparse", "subprocess", "tenacity", "tiktoken", "tqdm"}
    code = "import sys, parallel_processor.workers.child; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    own = {
        name.split(".")[1] for name in done.stdout.split() if name.startswith("parallel_processor.")
    }
    assert own == {
        "checks",
        "contents",
        "credentials",
        "exceptions",
        "models",
        "options",
        "providers",
        "runtime",
        "transport",
        "workers",
    }


def test_process_file_does_a_file(tmp_path: Path) -> None:
    """Paths may be strings, and every setting reaches its place."""
    source = write_lines(tmp_path / "in.jsonl", [{"n": 1}, {"n": 2}, "no object"])
    with RawServer(answer_all) as server:
        summary = process_file(
            str(source),
            str(tmp_path / "out.jsonl"),
            errors_path=str(tmp_path / "errors.jsonl"),
            request_url=f"{server.url}/v1/embeddings",
            api_key="sk-1",
            limits=NO_LIMITS,
        )
    assert (summary.answered, summary.failed) == (2, 1)
    assert len(read_lines(tmp_path / "out.jsonl")) == 2
    assert len(read_lines(tmp_path / "errors.jsonl")) == 1
    assert header_of(server.heads[0], "authorization") == "Bearer sk-1"


def test_process_file_resumes_and_overwrites(tmp_path: Path) -> None:
    """The second call sends nothing, the third everything."""
    source = write_lines(tmp_path / "in.jsonl", [{"n": 1}, {"n": 2}])
    sent = []
    with RawServer(answer_all) as server:
        for overwrite in (False, False, True):
            process_file(source, request_url=server.url, limits=NO_LIMITS, overwrite=overwrite)
            sent.append(len(server.bodies))
    assert sent == [2, 2, 4]
    assert len(read_lines(tmp_path / "in_results.jsonl")) == 2


def test_an_unknown_setting_is_an_error(tmp_path: Path) -> None:
    """A misspelt setting isn't ignored."""
    with pytest.raises(TypeError, match="max_worker"):
        process_file(tmp_path / "in.jsonl", max_worker=3)


def test_the_cookbooks_function_has_its_parameters_and_defaults() -> None:
    """Names, order and defaults are those of the script's command line."""
    parameters = inspect.signature(process_api_requests_from_file).parameters
    assert [(name, parameter.default) for name, parameter in parameters.items()] == [
        ("requests_filepath", inspect.Parameter.empty),
        ("save_filepath", None),
        ("request_url", "https://api.openai.com/v1/embeddings"),
        ("api_key", None),
        ("max_requests_per_minute", 1500),
        ("max_tokens_per_minute", 125_000),
        ("token_encoding_name", None),
        ("max_attempts", 5),
        ("logging_level", 20),
    ]


def test_the_cookbooks_call_works(tmp_path: Path) -> None:
    """The call as the script makes it, without awaiting it, with floats for limits."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": "a", "metadata": {"row": 1}}])
    logger, root = logging.getLogger("parallel_processor"), logging.getLogger()
    levels = logger.level, root.level, list(root.handlers)
    try:
        with RawServer(answer_all) as server:
            summary = process_api_requests_from_file(
                requests_filepath=str(source),
                save_filepath=str(tmp_path / "out.jsonl"),
                request_url=f"{server.url}/v1/embeddings",
                api_key="sk-1",
                max_requests_per_minute=float(3_000 * 0.5),
                max_tokens_per_minute=float(250_000 * 0.5),
                token_encoding_name="cl100k_base",
                max_attempts=5,
                logging_level=40,
            )
        assert logger.level == 40
    finally:
        logger.setLevel(levels[0])
    assert summary.answered == 1
    assert read_lines(tmp_path / "out.jsonl") == [[{"input": "a"}, OK, {"row": 1}]]
    assert (root.level, list(root.handlers)) == levels[1:]


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("max_requests_per_minute", 0, "requests_per_minute"),
        ("max_tokens_per_minute", -1, "tokens_per_minute"),
        ("max_attempts", 0, "max_attempts"),
    ],
)
def test_the_cookbooks_numbers_are_used(name: str, value: int, field: str, tmp_path: Path) -> None:
    """A bad value is refused under the name of the setting that it became."""
    settings: Any = {"api_key": "sk-1", "logging_level": logging.NOTSET, name: value}
    with pytest.raises(ConfigurationError, match=f"^{field} must be .* not {value}"):
        process_api_requests_from_file(tmp_path / "in.jsonl", **settings)
