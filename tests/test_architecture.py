"""The rules that keep the package readable, held against its syntax trees.

The tables at the top are what to amend, with a reason, when the design changes. Each rule is a
function from a module to what it breaks, so that it can be shown to fail (last test).
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import parallel_processor

PACKAGE = "parallel_processor"

# A module imports only from layers below its own.
LAYERS = (
    {"exceptions", "figures", "models", "options", "outcome", "replies"},
        *("display",),
    {
        *(
            "advice",
            "answers",
            "appendfile",
            "axes",
            "charts",
            "connections",
            "content",
            "counters",
            "descriptors",
            "displays",
            "duplicates",
            "encodings",
            "exchange",
            "exits",
            "failures",
            "forks",
            "formats",
            "frames",
            "headline",
            "heads",
        ),
        *("given", "images", "incoming", "inflight", "inputs", "jsontext", "latencies"),
        *("learned", "ledger", "limitsfile", "livereport"),
        *("messages", "notes"),
        "interception",
        *("observed", "pricing"),
        *("intervals", "markup", "page", "panels"),
        *("probing", "progress", "providers", "quota", "ratelimits", "redact", "remaining"),
        *("report", "resume"),
        *("serverlimits", "signals", "stop", "summaries", "surethread", "tables"),
        *("tlscontexts", "tokens", "transport"),
        *("verify", "waits", "wording"),
        *("notebooks", "records"),
    },
    {
        *("attempts", "bounds", "buckets", "ceiling", "charges", "child", "delivery", "dispatcher"),
        *("limiter", "lines", "pending", "retry"),
        *("processes", "threads", "worker", "writer"),
    },
    {"account", "crews", "filejob", "processor", "results", "run", "submissions"},
    {"api", "cli", "flags", "metrics"},
)
FACES = {"__init__", "__main__"}  # they may import from any layer
# What may be imported within a layer, one direction only.
WITHIN_LAYER = {
    ("exceptions", "figures"),  # for annotations
    ("exceptions", "outcome"),  # for annotations
    ("figures", "display"),
    ("outcome", "display"),
    ("outcome", "exceptions"),
    ("outcome", "models"),
    ("outcome", "replies"),
    ("options", "exceptions"),
    ("answers", "providers"),
    ("answers", "waits"),
    ("resume", "appendfile"),
    ("resume", "formats"),
    ("resume", "inputs"),
    ("verify", "formats"),
    ("verify", "inputs"),
    ("formats", "jsontext"),
    ("formats", "providers"),
    ("formats", "records"),
    ("records", "answers"),
    ("records", "jsontext"),
    ("records", "providers"),
    ("encodings", "forks"),
    ("notebooks", "forks"),
    ("progress", "forks"),
    ("tlscontexts", "forks"),
    ("waits", "forks"),
    ("content", "encodings"),
    ("content", "images"),
    ("tokens", "content"),
    ("tokens", "encodings"),
    ("connections", "incoming"),
    ("connections", "interception"),
    ("connections", "tlscontexts"),
    ("exchange", "connections"),
    ("exchange", "heads"),
    ("exchange", "incoming"),
    ("transport", "connections"),
    ("transport", "exchange"),
    ("transport", "failures"),
    ("transport", "heads"),
    ("transport", "interception"),
    ("transport", "jsontext"),
    ("transport", "providers"),
    ("progress", "counters"),
    ("progress", "notebooks"),
    ("observed", "probing"),
    ("observed", "quota"),
    ("observed", "remaining"),
    ("serverlimits", "remaining"),
    ("pricing", "learned"),
    ("pricing", "providers"),
    ("pricing", "tokens"),
    ("ratelimits", "waits"),
    ("counters", "latencies"),
    ("displays", "stop"),
    ("surethread", "stop"),
    ("duplicates", "forks"),
    ("duplicates", "formats"),
    ("duplicates", "jsontext"),
    ("given", "formats"),
    ("livereport", "report"),
    ("report", "inputs"),
    ("report", "latencies"),
    ("report", "page"),
    ("serverlimits", "inflight"),
    ("summaries", "progress"),
    ("summaries", "wording"),
    ("wording", "progress"),
    ("intervals", "latencies"),
    ("axes", "wording"),
    ("charts", "axes"),
    ("charts", "markup"),
    ("charts", "wording"),
    ("headline", "wording"),
    ("advice", "headline"),
    ("advice", "wording"),
    ("panels", "charts"),
    ("panels", "intervals"),
    ("panels", "latencies"),
    ("panels", "wording"),
    ("tables", "headline"),
    ("tables", "markup"),
    ("tables", "wording"),
    ("page", "advice"),
    ("page", "charts"),
    ("page", "headline"),
    ("page", "intervals"),
    ("page", "markup"),
    ("page", "panels"),
    ("page", "tables"),
    ("page", "wording"),
    ("frames", "providers"),
    ("serverlimits", "observed"),
    ("serverlimits", "quota"),
    ("buckets", "ceiling"),
    ("buckets", "limiter"),
    ("ceiling", "charges"),
    ("bounds", "lines"),
    ("delivery", "pending"),
    ("delivery", "worker"),
    ("dispatcher", "bounds"),
    ("dispatcher", "pending"),
    ("dispatcher", "limiter"),
    ("dispatcher", "lines"),
    ("limiter", "ceiling"),
    ("limiter", "charges"),
    ("lines", "pending"),
    ("lines", "ceiling"),
    ("lines", "limiter"),
    ("cli", "flags"),
    ("flags", "__init__"),  # its version
    ("cli", "metrics"),
    ("child", "attempts"),
    ("messages", "jsontext"),
    ("processes", "attempts"),
    ("processes", "pending"),
    ("processes", "limiter"),
    ("threads", "attempts"),
    ("threads", "pending"),
    ("threads", "limiter"),
    ("worker", "attempts"),
    ("worker", "pending"),
    ("worker", "limiter"),
    ("worker", "retry"),
    ("retry", "pending"),
    ("pending", "limiter"),
    ("account", "run"),
    ("filejob", "account"),
    ("filejob", "results"),
    ("filejob", "run"),
    ("processor", "account"),
    ("processor", "filejob"),
    ("account", "submissions"),
    ("submissions", "run"),
    ("run", "crews"),
}
# The simulator is a program of its own: it uses these, and nothing of the package uses it.
SIMULATOR_MAY_IMPORT = LAYERS[0] | {"encodings", "tokens"}

# Who imports a third-party package: exactly these.
IMPORTERS = {
    # The adapter of a session without its own; what goes wrong in one.
    "requests": {"transport", "connections", "failures", "interception"},
    # requests brings it
    "urllib3": {"transport", "connections", "exchange", "failures", "interception", "tlscontexts"},
    "tenacity": {"retry"},
    "tiktoken": {"encodings"},
    "tqdm": {"progress", "notebooks"},
    "prometheus_client": {"metrics"},  # an extra
    "argcomplete": {"cli"},  # an extra
    "typing_extensions": {"api", "processor"},  # for type checkers alone
}

THREADS = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "start_new_thread"}
THREAD_MAKERS = {
    "threads": {"ThreadPoolExecutor"},  # the workers
    "child": {"Thread", "ThreadPoolExecutor"},  # a process with workers alone
    "surethread": {"Thread", "start_new_thread"},  # for all that may be interrupted
    "processes": {"Thread"},  # one for each
    "signals": {"Thread"},  # waits for signals
    "encodings": {"Thread"},  # a download of tiktoken's own may hang
    "simulator": THREADS,
}
LOCKS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"}
LOCK_MAKERS = {
    *("buckets", "ceiling", "connections", "counters", "dispatcher", "duplicates"),
    *("account", "encodings", "learned", "ledger", "notes", "processes", "stop", "submissions"),
    "writer",
    *("tlscontexts", "transport"),
    "forks",
    "simulator",
}
ENVIRONMENT_READERS = {"cli"}
PRINTERS = {"cli", "simulator.__main__"}

MODULE_LINES = 400
FUNCTION_LINES = 40  # without the docstring


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file; ``name`` is relative to the package: ``worker``, ``simulator.__init__``."""

    name: str
    source: str
    tree: ast.Module

    @classmethod
    def parse(cls, name: str, source: str) -> Module:
        return cls(name=name, source=source, tree=ast.parse(source))

    @property
    def unit(self) -> str:
        """The name that the tables use: the simulator is one unit."""
        return "simulator" if self.name.split(".")[0] == "simulator" else self.name


def load_modules() -> dict[str, Module]:
    """Parse every module of the package under test."""
    root = Path(parallel_processor.__file__).parent
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")
    }
    return {name: Module.parse(name, path.read_text("utf-8")) for name, path in names.items()}


MODULES = load_modules()


def imports(module: Module) -> Iterator[str]:
    """Yield the dotted name of everything that the module imports, relative imports resolved."""
    here = [PACKAGE, *module.name.split(".")]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: -node.level], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(module: Module) -> Iterator[str]:
    """Yield the names of the package's modules that the module imports."""
    for dotted in imports(module):
        if dotted.split(".")[0] == PACKAGE:
            first = dotted.split(".")[1:2]
            known = first and (first[0] in MODULES or first[0] == "simulator" or layer(first[0]))
            yield first[0] if known else "__init__"


def layer(name: str) -> int | None:
    """Return the layer of a module, counted from 1; ``None`` if it has no place."""
    return next((i for i, names in enumerate(LAYERS, start=1) if name in names), None)


def uses(module: Module) -> Iterator[str]:
    """Yield the full dotted name of what the code uses, annotations left out: ``time.sleep``."""
    full_names: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            full_names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full_names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for dotted in dotted_names(module.tree):
        first, dot, rest = dotted.partition(".")
        yield full_names.get(first, first) + dot + rest


def dotted_names(node: ast.AST) -> Iterator[str]:
    """Yield every ``a.b.c`` and ``a`` below a node, skipping annotations."""
    if isinstance(node, ast.Attribute | ast.Name) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
        yield ast.unparse(node)
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from dotted_names(child)


def breaks_layers(module: Module) -> Iterator[str]:
    """Imports point down; the simulator stands apart."""
    own, unit = layer(module.unit), module.unit
    if unit != "simulator" and unit not in FACES and own is None:
        yield f"{module.name} has no layer: give it a place in LAYERS of {Path(__file__).name}"
        return
    for name in own_imports(module):
        if unit == "simulator":
            allowed = name in SIMULATOR_MAY_IMPORT or name == "simulator"
        elif unit in FACES:
            allowed = name != "simulator"
        else:
            allowed = (layer(name) or sys.maxsize) < (own or 0) or (unit, name) in WITHIN_LAYER
        if not allowed:
            yield f"{module.name} may not import {name}"


def breaks_single_importer(module: Module) -> Iterator[str]:
    """Each third-party package has one importer."""
    for dotted in imports(module):
        package = dotted.split(".")[0]
        if package in sys.stdlib_module_names or package == PACKAGE:
            continue
        importers = IMPORTERS.get(package, set())
        if module.name not in importers:
            yield f"{module.name} imports {package}: that is for {importers or 'nobody'}"


def breaks_thread_makers(module: Module) -> Iterator[str]:
    """Threads are made in few places."""
    allowed = THREAD_MAKERS.get(module.unit, set())
    for dotted in uses(module):
        origin, _, name = dotted.rpartition(".")
        known = origin.split(".")[0] in ("threading", "concurrent", "_thread", "multiprocessing")
        if known and name in THREADS - allowed:
            yield f"{module.name} makes a thread: {dotted}"


def breaks_lock_makers(module: Module) -> Iterator[str]:
    """Locks are made in few places."""
    if module.unit in LOCK_MAKERS:
        return
    for dotted in uses(module):
        origin, _, name = dotted.rpartition(".")
        if origin in ("threading", "multiprocessing") and name in LOCKS:
            yield f"{module.name} makes a lock: {dotted}"


def breaks_environment(module: Module) -> Iterator[str]:
    """The environment is read in few places."""
    if module.unit in ENVIRONMENT_READERS:
        return
    for dotted in uses(module):
        if re.match(r"os\.(environb?|getenvb?|putenv|unsetenv)\b", dotted):
            yield f"{module.name} uses the environment: {dotted}"


def breaks_habits(module: Module) -> Iterator[str]:
    """No event loop, no bare except, no sleep, no stray print."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef):
            yield f"{module.name}:{node.lineno} async def"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{module.name}:{node.lineno} bare except"
    for dotted in imports(module):
        if dotted.split(".")[0] == "asyncio":
            yield f"{module.name} imports asyncio"
    for dotted in uses(module):
        if dotted == "time.sleep":
            yield f"{module.name} sleeps; wait on an event"
        if dotted == "print" and module.name not in PRINTERS:
            yield f"{module.name} prints"


def breaks_sizes(module: Module) -> Iterator[str]:
    """Modules and functions stay short."""
    lines = len(module.source.splitlines())
    if lines > MODULE_LINES:
        yield f"{module.name} has {lines} lines, at most {MODULE_LINES} are allowed"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef):
            lines = line_count(node)
            if ast.get_docstring(node) is not None:
                lines -= line_count(node.body[0])
            if lines > FUNCTION_LINES:
                yield f"{module.name}.{node.name} has {lines} lines, at most {FUNCTION_LINES}"


def line_count(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


RULES = [rule for name, rule in list(globals().items()) if name.startswith("breaks_")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    """No module of the package breaks the rule."""
    broken = dict.fromkeys(line for module in MODULES.values() for line in rule(module))
    assert not broken, "\n".join(broken)


def test_every_dependency_is_imported() -> None:
    """Each third-party package is imported where the table says, and each entry is needed."""
    used = {(dotted.split(".")[0], m.name) for m in MODULES.values() for dotted in imports(m)}
    listed = {(package, name) for package, names in IMPORTERS.items() for name in names}
    assert not listed - used


def test_all_is_the_public_namespace() -> None:
    """What ``import parallel_processor`` shows is what ``__all__`` lists, submodules aside."""
    package = importlib.import_module(PACKAGE)
    visible = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and not (isinstance(value, ModuleType) and value.__name__.startswith(f"{PACKAGE}."))
        and getattr(value, "__module__", "") != "__future__"
    }
    assert visible == {name for name in package.__all__ if not name.startswith("__")}
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_every_test_says_in_a_sentence_what_it_shows() -> None:
    """Each test has a docstring of one sentence."""
    wrong = []
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                docstring = ast.get_docstring(node) or ""
                if not re.fullmatch(r"[^\n].*[.?!]", docstring, re.DOTALL) or "\n\n" in docstring:
                    wrong.append(f"{path.name}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (breaks_layers, "brand_new", ""),
        (breaks_layers, "options", "from parallel_processor.cli import main"),
        (breaks_layers, "options", "from parallel_processor import cli"),
        (breaks_layers, "retry", "from parallel_processor import Limits"),
        (breaks_layers, "resume", "def f():\n    from .worker import Worker"),
        (breaks_layers, "quota", "import parallel_processor.tokens"),
        (breaks_layers, "encodings", "from . import tokens"),
        (breaks_layers, "api", "from .cli import main"),
        (breaks_layers, "cli", "from .simulator.server import serve"),
        (breaks_layers, "__init__", "from . import simulator"),
        (breaks_layers, "simulator.server", "from ..limiter import TokenBucket"),
        (breaks_single_importer, "worker", "import requests.adapters"),
        (breaks_single_importer, "simulator.server", "from tiktoken import Encoding"),
        (breaks_single_importer, "transport", "import httpx"),
        (breaks_thread_makers, "worker", "from threading import Thread as T\nT()"),
        (breaks_thread_makers, "limiter", "import threading\nclass A(threading.Timer): ..."),
        (breaks_thread_makers, "writer", "import concurrent.futures as c\nc.ThreadPoolExecutor()"),
        (breaks_thread_makers, "processor", "import threading as t\nt.Thread(target=f)"),
        (breaks_lock_makers, "worker", "import threading\nf(default_factory=threading.Lock)"),
        (breaks_lock_makers, "formats", "from threading import Condition\nc = Condition()"),
        (breaks_environment, "api", "import os\nkey = os.environ['KEY']"),
        (breaks_environment, "api", "from os import getenv\nkey = getenv('KEY')"),
        (breaks_habits, "api", "async def f(): ..."),
        (breaks_habits, "api", "from asyncio import run"),
        (breaks_habits, "api", "try:\n    f()\nexcept:\n    raise"),
        (breaks_habits, "worker", "from time import sleep\nsleep(1)"),
        (breaks_habits, "worker", "import time\nf(wait=time.sleep)"),
        (breaks_habits, "worker", "print(1)"),
        (breaks_habits, "simulator.server", "print(1)"),
        (breaks_sizes, "worker", "pass\n" * 401),
        (breaks_sizes, "worker", "class A:\n def f():\n  '''a\n  b'''\n" + "  pass\n" * 40),
    ],
)
def test_the_rules_can_be_broken(
    rule: Callable[[Module], Iterator[str]], name: str, source: str
) -> None:
    """Each rule finds what it is there to find."""
    assert len(list(rule(Module.parse(name, source)))) == 1


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (breaks_layers, "processor", "from . import account\nfrom .options import Options"),
        (breaks_layers, "simulator.__main__", "from .server import serve\nfrom ..tokens import f"),
        (breaks_layers, "__init__", "from .api import process_file"),
        (breaks_thread_makers, "limiter", "import threading\ndef f(t: threading.Thread): ..."),
        (breaks_lock_makers, "worker", "import threading\nlock: threading.Lock"),
        (breaks_lock_makers, "simulator.limits", "import threading\nlock = threading.Lock()"),
        (breaks_habits, "worker", "import time\nnow = time.monotonic()"),
        (breaks_sizes, "worker", "def f():\n  '''a\n  b'''\n" + "  pass\n" * 39),
    ],
)
def test_the_rules_let_pass_what_is_right(
    rule: Callable[[Module], Iterator[str]], name: str, source: str
) -> None:
    """A rule finds nothing where there is nothing."""
    assert list(rule(Module.parse(name, source))) == []
