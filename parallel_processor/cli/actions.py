"""What becomes of the values of a flag, where argparse has no word for it."""

from __future__ import annotations

import argparse
from typing import Any


class AndReplicas(argparse.Action):
    """Keeps the first value under its name, and further ones in ``replica_urls``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        urls = getattr(namespace, "replica_urls", None)
        if urls is None:
            namespace.request_url, namespace.replica_urls = values, ()
        else:
            namespace.replica_urls = (*urls, values)


class Once(argparse.Action):
    """Refuses a second value, which would silently take the place of the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: it takes one file here")
        setattr(namespace, self.dest, values)
