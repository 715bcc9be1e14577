"""The function for programs, and what the command calls: a file is sent by workers on Ray.

No key is an argument of anything that Ray sees. Workers find it in a variable of their environment or in
a file. The embedded Ray inherits this process's environment. There a key that was passed in becomes such a
variable, for as long as the run lasts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parallel_processor.cluster.job import KeySource
from parallel_processor.cluster.load import check_ray
from parallel_processor.cluster.ray_engine import connected, environment, on_ray
from parallel_processor.cluster.run import ClusterJob, ClusterRun
from parallel_processor.cluster.tally import ClusterSummary
from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.keyring import KeyLike
from parallel_processor.credentials.rotating_key import RotatingKey
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.files.object_stores import local_path
from parallel_processor.options import Options, Settings
from parallel_processor.providers.endpoints import check_key
from parallel_processor.report.summary import Stats

if TYPE_CHECKING:
    from typing_extensions import Unpack

_KEY, _LOGIN = "PARALLEL_PROCESSOR_API_KEY", "PARALLEL_PROCESSOR_LOGIN"
_NO_KEY = KeySource()
_LIMITER, _SECRETS = "PARALLEL_PROCESSOR_LIMITER", "PARALLEL_PROCESSOR_SECRETS"


class OnRay:
    """One call of :func:`process_on_ray`, which another thread may stop."""

    def __init__(
        self,
        requests_path: str,
        save_path: str | None = None,
        *,
        errors_path: str | None = None,
        address: str | None = None,
        num_workers: int | None = None,
        key: KeySource = _NO_KEY,
        overwrite: bool = False,
        keep_failures: bool = False,
        progress: bool | None = None,
        report_path: str | Path | None = None,
        block_bytes: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        for name, value in (("num_workers", num_workers), ("block_bytes", block_bytes)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(f"{name} must be a whole number above 0, not {value!r}")
        self._address, self._num_workers = address, num_workers
        named = replace(key, file=key.file and str(Path(key.file).resolve()))
        _check_budget(settings)
        bare, found, self._secrets = _without_secrets(settings, named, address)
        self._job = ClusterJob(
            requests_path=requests_path,
            save_path=save_path,
            errors_path=errors_path or "",
            workers=num_workers or len(os.sched_getaffinity(0)),
            settings=bare,
            key=found,
            overwrite=overwrite,
            keep_failures=keep_failures,
            progress=progress,
            report_path=local_path(report_path) if report_path is not None else None,
            block_bytes=block_bytes,
        )
        self._run = ClusterRun(self._job)

    @property
    def folder(self) -> str:
        """Where the output goes."""
        return self._job.folder

    def stats(self) -> Stats:
        """What all workers have done until now, as they have told. Any thread may call it."""
        return self._run.stats()

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """Send nothing more; what is in flight may end, unless it is cancelled. Any thread may call it."""
        self._run.stop(reason, cancels=cancels)

    def process(self) -> ClusterSummary:
        """Send what has no record yet."""
        check_ray()  # if it is missing, that is said before anything else
        with ExitStack() as stack:
            stack.enter_context(environment(self._secrets))
            workers = self._num_workers
            if self._address is not None:
                ray = stack.enter_context(connected(self._address))
                workers = workers or int(ray.cluster_resources().get("CPU", 1))
            make_engine = partial(on_ray, address=self._address)
            return self._run.process(make_engine, workers=workers, shares_limits=True)


_NOT_SHARED = ("max_cost", "max_total_tokens", "max_seconds", "max_failures")


def _check_budget(settings: Settings) -> None:
    """Raise :class:`ConfigurationError` for a budget: each worker would have the whole of it."""
    for name in _NOT_SHARED:
        if settings.get(name) not in (None, math.inf):
            hint = "run the job without Ray, or one part of its requests after another"
            raise ConfigurationError(f"{name} can't bound what several workers spend: {hint}")
    if settings.get("prices") not in (None, "auto"):
        raise ConfigurationError("prices are of no use on Ray, where money is not counted")


def _with_password(limiter: object) -> str:
    """The URL ``limiter`` if it may have a password in it, else nothing."""
    return limiter if isinstance(limiter, str) and "@" in limiter else ""


def _without_secrets(
    settings: Settings, named: KeySource, address: str | None
) -> tuple[Settings, KeySource, dict[str, str]]:
    """The settings without key and login, where workers find these, and the variables for that."""
    options = Options(**settings)
    is_named = bool(named.variable or named.file or named.command)
    if address is None and not is_named:
        check_key(options)
    found = {
        _KEY: "" if is_named else "\n".join(_texts(options.api_key)),
        _LOGIN: options.login or "",
        _LIMITER: _with_password(options.limiter),
        _SECRETS: _packed(options, address),
    }
    secrets = {name: value for name, value in found.items() if value}
    if address is not None and secrets:
        raise ConfigurationError(
            "a key, a login, a password or a header with one would be visible to everybody who can see the "
            "cluster: name a variable that is set on its nodes, or a file that is there (key_variable, "
            "key_file, key_variables)"
        )
    bare: Settings = {
        **settings,
        "api_key": None,
        "api_keys": {},
        "login": None,
        "limiter": None if _LIMITER in secrets else options.limiter,
        "prices": None,  # workers don't count money
    }
    bare |= {"request_url": options.request_url, "replica_urls": options.replica_urls}
    if _SECRETS in secrets:
        bare |= {"headers": {}, "query": {}}
    key = replace(
        named,
        variable=named.variable or (_KEY if _KEY in secrets else ""),
        command=named.command or _command(options.api_key),
        login_variable=_LOGIN if _LOGIN in secrets else "",
        limiter_variable=_LIMITER if _LIMITER in secrets else "",
        secrets_variable=_SECRETS if _SECRETS in secrets else "",
    )
    return bare, key, secrets


def _texts(key: KeyLike | None) -> Sequence[str]:
    """The keys that are texts."""
    if isinstance(key, str):
        return [key]
    return key if isinstance(key, tuple) else []


def _command(key: KeyLike | None) -> str:
    """The command that prints the key, if one does. A function can't be sent without what it knows."""
    if not isinstance(key, RotatingKey):
        return ""
    if command := getattr(key.fetch, "command", ""):
        return str(command)
    raise ConfigurationError(
        "api_key can't be a function on Ray, which would show what it knows: name a variable, a file or a "
        "command (key_variable, key_file, key_command)"
    )


def _packed(options: Options, address: str | None) -> str:
    """Headers, query and the keys for other hosts, as JSON; empty if nothing of it is secret."""
    if any(isinstance(key, RotatingKey) for key in options.api_keys.values()):
        raise ConfigurationError(
            "api_keys can't be functions on Ray: name variables (key_variables)"
        )
    is_secret = bool(options.api_keys)
    is_secret |= any(map(is_secret_name, (*options.headers, *options.query)))
    if not is_secret and (address is not None or not (options.headers or options.query)):
        return ""
    packed = {"headers": options.headers, "query": options.query, "api_keys": options.api_keys}
    return json.dumps({name: dict(value) for name, value in packed.items()})


def process_on_ray(
    requests_path: str,
    save_path: str | None = None,
    *,
    errors_path: str | None = None,
    address: str | None = None,
    num_workers: int | None = None,
    key_variable: str = "",
    key_file: str = "",
    key_command: str = "",
    key_variables: Mapping[str, str] | None = None,
    overwrite: bool = False,
    keep_failures: bool = False,
    progress: bool | None = None,
    report_path: str | Path | None = None,
    block_bytes: int | None = None,
    **settings: Unpack[Settings],
) -> ClusterSummary:
    """Send every request of a file by workers on Ray, and write their records to parts in a folder.

    The same call again sends only what has no answer yet. ``settings`` are those of :class:`Options`, for
    each worker; the limits are those of all workers together.

    Args:
        requests_path: the requests, a path that all workers can read, or a URL such as ``s3://bucket/name``.
        save_path: the folder of the parts, likewise; by default ``name_results`` beside ``name.jsonl``.
        errors_path: a folder for the records of failures, likewise, if they should not go to the parts.
        address: of a Ray cluster, or ``auto``. ``None``: an embedded Ray of this machine, or the one that
            the program has connected.
        num_workers: by default one for each CPU.
        key_variable: the variable of the workers' environment that has the key.
        key_file: a file with the key, on each node, or with several, one a line.
        key_command: a command that prints the key, which each worker runs. Ray shows its text.
        key_variables: the variables that have the keys for other hosts, by host.
        overwrite: start afresh, without the old parts.
        keep_failures: leave failed records as they are, and don't send their requests.
        progress: as in :meth:`Processor.process_file`.
        report_path: likewise.
        block_bytes: how much of the file a worker gets at a time; by default up to 16 MiB.

    Raises what :meth:`Processor.process_file` raises, and :class:`ConfigurationError` if Ray is missing.
    """
    return OnRay(
        requests_path,
        save_path,
        errors_path=errors_path,
        address=address,
        num_workers=num_workers,
        key=KeySource(
            variable=key_variable,
            file=key_file,
            command=key_command,
            host_variables=dict(key_variables or {}),
        ),
        overwrite=overwrite,
        keep_failures=keep_failures,
        progress=progress,
        report_path=report_path,
        block_bytes=block_bytes,
        **settings,
    ).process()
