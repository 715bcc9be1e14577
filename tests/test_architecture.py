"""The rules that keep the package readable, checked against its syntax trees.

The tables at the top are what to change, with a reason, when the design changes. Each rule is a function
from a module to its violations, so that a test can show that the rule fails where it should (last tests).
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import parallel_processor

PACKAGE = "parallel_processor"

# What every package may import. These import each other in one direction: each those to its left.
VOCABULARY = ("runtime", "exceptions", "checks", "credentials", "options", "contents", "models")
FACE = "__init__"  # the package's own: it shows the public names of every package but the simulator
# What a package or a top-level module may import besides these and itself.
ALLOWED: dict[str, set[str]] = {
    "exceptions": set(),
    "checks": set(),
    "credentials": set(),
    "options": set(),
    "contents": set(),
    "models": set(),
    "runtime": set(),
    "providers": set(),
    "ratelimit": set(),
    "tokens": {"providers"},
    "transport": {"providers"},
    "files": {"providers"},
    "workers": {"transport", "providers"},
    "report": {"planning", "ratelimit", "files", "providers"},  # of planning, the figures of costs
    "limiter": {"ratelimit"},
    "tables": {"report", "files", "providers"},
    "upstreams": {"workers", "ratelimit", "providers"},
    "planning": {"tokens", "ratelimit", "files", "providers"},
    "engine": {
        "planning",
        "workers",
        "upstreams",
        "ratelimit",
        "limiter",
        "files",
        "tokens",
        "report",
        "providers",
    },
    "batches": {"files", "providers"},
    "processor": {"engine", "tables", "report", "files", "providers"},
    "api": {"processor", "planning", "tables", "files", "report"},
    "cluster": {"processor", "limiter", "report", "files", "providers", "ratelimit"},
    # FACE for the version
    "cli": {
        *("api", "processor", "cluster", "planning", "batches", "tables", "report", "files"),
        *("providers", FACE),
    },
    "simulator": {"tokens"},
    "__main__": {"cli"},
}
# Imported for annotations alone, below `if TYPE_CHECKING`.
TYPES_ONLY = {
    ("exceptions", "models"),  # exceptions carry an outcome
    ("exceptions", "report"),  # exceptions carry a summary
    ("workers", "ratelimit"),  # a request waits with its bucket's reservation
    ("workers", "upstreams"),  # or with that of a group of buckets
    ("planning", "upstreams"),  # a pack is for what its requests wait for
    ("planning", "workers"),  # a budget is told which request it is for
}

# Who imports a third-party package: exactly these modules.
IMPORTERS = {
    "requests": {
        *("transport.session", "transport.connections", "transport.failures"),
        *("transport.interception", "transport.worker_session"),
    },
    "urllib3": {  # a dependency of requests
        *("transport.session", "transport.connections", "transport.exchange"),
        *("transport.failures", "transport.interception", "transport.tls"),
        "transport.setup_faults",
    },
    "tenacity": {"engine.retry"},
    "tiktoken": {"tokens.encodings"},
    "tqdm": {"report.progress"},
    "prometheus_client": {"report.prometheus"},  # an extra
    "argcomplete": {"cli.main"},  # an extra
    "jsonschema": {"cli.json_schema"},  # an extra, and what it stands on:
    "jsonschema_specifications": {"cli.json_schema"},
    "referencing": {"cli.json_schema"},
    "redis": {"limiter.redis_limiter"},  # an extra
    "genai_prices": {"planning.prices"},  # an extra
    "typing_extensions": {"api", "processor", "cluster.on_ray"},  # for type checkers alone
    "ray": {"cluster.load"},  # an extra
    "fsspec": {"files.object_stores"},  # an extra
    "zstandard": {"files.compression"},  # an extra
    "compression": {"files.compression"},  # the standard library's, since Python 3.14
}

THREADS = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "start_new_thread"}
THREAD_MAKERS = {
    "workers.threads": {"ThreadPoolExecutor"},  # the workers
    "workers.child": {"Thread", "ThreadPoolExecutor"},  # a process with workers alone
    "workers.processes": {"Thread"},  # one for each child process
    "runtime.threads": {"Thread", "start_new_thread"},  # whatever Ctrl-C may interrupt
    "cli.signals": {"Thread"},  # waits for signals
    "cluster.journals": {"Thread"},  # uploads
    "cluster.processes": {"Thread"},  # one for each block of a worker
    "tokens.encodings": {"Thread"},  # a download of tiktoken's own may hang
    "simulator": THREADS,
}
LOCKS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"}
SAFE_LOCKS = {"InterruptSafeLock", "InterruptSafeRLock"}
LOCK_MAKERS = {
    *("engine.account", "engine.dispatcher", "engine.submissions", "planning.duplicates"),
    *("planning.bounds", "planning.budget", "planning.packer"),
    *("upstreams.lanes", "engine.stops", "upstreams.outage", "upstreams.routes"),
    *("ratelimit.accounts", "ratelimit.registry", "limiter.leasing"),
    *("report.counters", "report.repeats", "report.wait_times", "report.report_file"),
    *("transport.connections", "transport.session", "transport.timeouts"),
    *("transport.tls", "credentials.rotating_key", "tokens.estimates"),
    *("cluster.worker", "cluster.processes"),
    *("files.writer", "workers.processes", "runtime.cores", "runtime.forks", "runtime.locks"),
    "runtime.stop",
    "simulator",
}
# Who makes a lock of Python's own, which an interrupt may leave taken.
PLAIN_LOCK_MAKERS = {
    "runtime.locks",
    *("transport.connections", "transport.session", "transport.timeouts", "transport.tls"),
    *("runtime.cores", "workers.processes"),
    "credentials.rotating_key",  # the main thread, which gets the interrupts, waits nowhere in it
}
ENVIRONMENT_READERS = {
    *("cli.main", "cli.environment"),
    "cluster.job",  # the key, where a worker runs
    "cluster.ray_engine",  # Ray takes its settings from there
}
PRINTERS = {"cli.console", "simulator.__main__"}

PACKAGE_MODULES = 16
MODULE_LINES = 400
FUNCTION_LINES = 40  # without the docstring


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file; ``name`` is relative to the package: ``engine.run``, ``engine.__init__``."""

    name: str
    source: str
    tree: ast.Module

    @classmethod
    def parse(cls, name: str, source: str) -> Module:
        return cls(name=name, source=source, tree=ast.parse(source))

    @property
    def package(self) -> str:
        """The name that ``ALLOWED`` uses: the first part."""
        return self.name.split(".")[0]

    @property
    def unit(self) -> str:
        """The name that the other tables use: the simulator is one unit."""
        return "simulator" if self.package == "simulator" else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One name that a module imports of this package, such as ``Run`` of ``engine.run``."""

    module: str
    name: str
    for_types: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def load_modules() -> dict[str, Module]:
    """Parse every module of the package under test."""
    root = Path(parallel_processor.__file__).parent
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")
    }
    return {name: Module.parse(name, path.read_text("utf-8")) for name, path in names.items()}


MODULES = load_modules()
PACKAGES = {m.package for m in MODULES.values() if "." in m.name}


def imports(module: Module) -> Iterator[tuple[str, str, bool]]:
    """Yield module, name and whether it is for annotations, of all imports, relative ones resolved."""
    here = [PACKAGE, *module.name.split(".")]
    guarded = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: -node.level], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            yield from ((base, alias.name, id(node) in guarded) for alias in node.names)


def own_imports(module: Module) -> Iterator[Import]:
    """Yield what the module imports of this package."""
    for dotted, name, for_types in imports(module):
        if dotted.split(".")[0] != PACKAGE:
            continue
        path = dotted.split(".")[1:]
        if name and ".".join([*path, name]) in MODULES | dict.fromkeys(PACKAGES):
            path, name = [*path, name], ""  # a module is imported, not a name of it
        yield Import(module=".".join(path) or FACE, name=name, for_types=for_types)


def border_names(package: str) -> dict[str, set[str]]:
    """Return the names that may be imported from elsewhere, by module, as the docstring lists them.

    They stand in the docstring of the package's ``__init__``, below a line that begins with "Names":
    a module and its names on each indented line; a line that ends with a comma goes on in the next.
    """
    docstring = ast.get_docstring(MODULES[f"{package}.__init__"].tree) or ""
    listing = re.sub(r",\n +", ", ", docstring.partition("\nNames")[2])
    rows = re.findall(r"^ {4}([\w.]+) {2,}(\w+(?:, \w+)*)$", listing, re.MULTILINE)
    return {module: set(names.split(", ")) for module, names in rows}


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


def is_allowed(importer: str, imported: Import) -> bool:
    """True if the table lets a package import another."""
    package = imported.package
    if importer == package:
        return True
    if imported.for_types and (importer, package) in TYPES_ONLY:
        return True
    if importer == FACE:
        return package in ALLOWED and package not in ("simulator", "cli", "cluster")
    if importer in VOCABULARY:
        return package in VOCABULARY[: VOCABULARY.index(importer)]
    return package in VOCABULARY or package in ALLOWED.get(importer, set())


def breaks_table(module: Module) -> Iterator[str]:
    """Imports follow the table."""
    if module.package != FACE and module.package not in ALLOWED:
        yield f"{module.name} has no place: give its package a row in ALLOWED of {Path(__file__).name}"
        return
    for imported in own_imports(module):
        if not is_allowed(module.package, imported):
            yield f"{module.name} may not import {imported.module}"


def breaks_border(module: Module) -> Iterator[str]:
    """Only the names that a package lists in its docstring cross its border."""
    for imported in own_imports(module):
        package, _, rest = imported.module.partition(".")
        if package == module.package or package not in PACKAGES or package == "simulator":
            continue
        if imported.name not in border_names(package).get(rest, set()):
            what = f"{imported.module}.{imported.name}"
            yield f"{module.name} imports {what}, which {package}/__init__.py doesn't list"


def breaks_single_importer(module: Module) -> Iterator[str]:
    """Each third-party package has its importers."""
    for dotted, _, _ in imports(module):
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
        known = origin in ("threading", "multiprocessing", f"{PACKAGE}.runtime.locks")
        if known and name in LOCKS | SAFE_LOCKS:
            yield f"{module.name} makes a lock: {dotted}"


def breaks_plain_lock_makers(module: Module) -> Iterator[str]:
    """A lock stays usable wherever an interrupt hits the thread that takes it."""
    if module.name in PLAIN_LOCK_MAKERS:
        return
    for dotted in uses(module):
        origin, _, name = dotted.rpartition(".")
        if origin in ("threading", "multiprocessing") and name in LOCKS:
            yield f"{module.name} makes a lock that an interrupt may leave taken: {dotted}"


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
    for dotted, _, _ in imports(module):
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


def test_packages_form_no_circle() -> None:
    """The table has an order, and so have the imports within each package."""
    tuple(graphlib.TopologicalSorter(ALLOWED).static_order())
    graph = {
        module.name: {each.module for each in own_imports(module) if not each.for_types}
        for module in MODULES.values()
        if not module.name.endswith(FACE)
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_the_table_has_what_there_is() -> None:
    """Each row is a package or a module of the top level, and each permission is used."""
    top = {name for name in MODULES if "." not in name and name != FACE}
    assert set(ALLOWED) == top | PACKAGES
    used = {(m.package, i.package) for m in MODULES.values() for i in own_imports(m)}
    allowed = {(importer, package) for importer, row in ALLOWED.items() for package in row}
    assert not (allowed | TYPES_ONLY) - used


def test_the_top_level_and_the_packages_stay_small() -> None:
    """A few modules and packages at the top, and few modules in each package."""
    top = {name for name in MODULES if "." not in name and not name.startswith("__")}
    assert top == {"api", "processor", "options", "checks", "contents", "models", "exceptions"}
    assert len(PACKAGES) <= 18
    sizes = Counter(name.rpartition(".")[0] for name in MODULES if not name.endswith("__"))
    del sizes[""], sizes["simulator"]  # a program of its own
    assert max(sizes.values()) <= PACKAGE_MODULES, sizes


@pytest.mark.parametrize("package", sorted(PACKAGES - {"simulator"}))
def test_a_package_lists_the_names_that_cross_its_border(package: str) -> None:
    """The docstring lists what others import, and nothing else; the package imports nothing itself."""
    crossing: dict[str, set[str]] = {}
    for module in MODULES.values():
        for imported in own_imports(module) if module.package != package else ():
            if imported.package == package:
                crossing.setdefault(imported.module.partition(".")[2], set()).add(imported.name)
    assert border_names(package) == crossing
    assert list(imports(MODULES[f"{package}.__init__"])) == []


def test_every_dependency_is_imported() -> None:
    """Each third-party package is imported where the table says, and each entry is needed."""
    used = {(dotted.split(".")[0], m.name) for m in MODULES.values() for dotted, _, _ in imports(m)}
    listed = {(package, name) for package, names in IMPORTERS.items() for name in names}
    assert not listed - used


def test_the_other_tables_name_what_there_is() -> None:
    """A module that makes threads or locks, prints or reads the environment exists, and does so."""
    for rule, table in (
        (breaks_thread_makers, THREAD_MAKERS),
        (breaks_lock_makers, LOCK_MAKERS),
        (breaks_plain_lock_makers, PLAIN_LOCK_MAKERS),
        (breaks_environment, ENVIRONMENT_READERS),
    ):
        for name in set(table) - {"simulator"}:
            stranger = Module.parse(f"stranger.{name}", MODULES[name].source)
            assert list(rule(stranger)), f"{name} needs no place in the table of {rule.__name__}"


def test_all_is_the_public_namespace() -> None:
    """What ``dir(parallel_processor)`` shows is what ``__all__`` lists, submodules aside, and is there."""
    package = importlib.import_module(PACKAGE)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    visible = {
        name
        for name in dir(package)
        if not name.startswith("_")
        and not isinstance(getattr(package, name), ModuleType)
        and type(getattr(package, name)).__module__ != "__future__"
    }
    assert visible == set(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'process_files'"):
        package.process_files  # noqa: B018


def test_every_module_can_be_imported_first() -> None:
    """No module needs another one to have been imported before it."""
    found = {
        info.name for info in pkgutil.walk_packages(parallel_processor.__path__, f"{PACKAGE}.")
    }
    assert {f"{PACKAGE}.{name}" for name in MODULES if not name.endswith("__init__")} <= found


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
        (breaks_table, "brand_new", ""),
        (breaks_table, "options", "from parallel_processor.cli.main import main"),
        (breaks_table, "options", "from parallel_processor import cli"),
        (breaks_table, "runtime.stop", "from parallel_processor.models import Outcome"),
        (breaks_table, "engine.retry", "from parallel_processor import Limits"),
        (breaks_table, "engine.retry", "def f():\n    from ..transport.session import Transport"),
        (breaks_table, "transport.tls", "import parallel_processor.tokens.counter"),
        (breaks_table, "workers.pending", "from ..ratelimit.token_bucket import TokenBucket"),
        (breaks_table, "ratelimit.quota", "from ..report.samples import Sample"),
        (breaks_table, "api", "from .cli.main import main"),
        (breaks_table, "cli.main", "from ..simulator.server import serve"),
        (breaks_table, "__init__", "from . import simulator"),
        (breaks_table, "__init__", "from .cluster.on_ray import process_on_ray"),
        (breaks_table, "simulator.server", "from ..ratelimit.token_bucket import TokenBucket"),
        (breaks_border, "engine.retry", "from ..workers.threads import _nobodys"),
        (breaks_border, "engine.retry", "from ..workers import threads"),
        (breaks_border, "cli.flags", "import parallel_processor.report.wording"),
        (breaks_single_importer, "engine.run", "import requests.adapters"),
        (breaks_single_importer, "simulator.server", "from tiktoken import Encoding"),
        (breaks_single_importer, "transport.session", "import httpx"),
        (breaks_thread_makers, "engine.run", "from threading import Thread as T\nT()"),
        (breaks_thread_makers, "engine.run", "import threading\nclass A(threading.Timer): ..."),
        (
            breaks_thread_makers,
            "files.writer",
            "import concurrent.futures as c\nc.ThreadPoolExecutor()",
        ),
        (breaks_thread_makers, "processor", "import threading as t\nt.Thread(target=f)"),
        (breaks_lock_makers, "engine.run", "import threading\nf(default_factory=threading.Lock)"),
        (breaks_lock_makers, "files.formats", "from threading import Condition\nc = Condition()"),
        (
            breaks_lock_makers,
            "files.formats",
            f"from {PACKAGE}.runtime.locks import InterruptSafeLock as L\nL()",
        ),
        (breaks_plain_lock_makers, "engine.account", "import threading\nlock = threading.Lock()"),
        (breaks_environment, "api", "import os\nkey = os.environ['KEY']"),
        (breaks_environment, "api", "from os import getenv\nkey = getenv('KEY')"),
        (breaks_habits, "api", "async def f(): ..."),
        (breaks_habits, "api", "from asyncio import run"),
        (breaks_habits, "api", "try:\n    f()\nexcept:\n    raise"),
        (breaks_habits, "engine.run", "from time import sleep\nsleep(1)"),
        (breaks_habits, "engine.run", "import time\nf(wait=time.sleep)"),
        (breaks_habits, "engine.run", "print(1)"),
        (breaks_habits, "simulator.server", "print(1)"),
        (breaks_sizes, "engine.run", "pass\n" * 401),
        (breaks_sizes, "engine.run", "class A:\n def f():\n  '''a\n  b'''\n" + "  pass\n" * 40),
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
        (
            breaks_table,
            "processor",
            "from .engine.account import Account\nfrom .options import Options",
        ),
        (
            breaks_table,
            "simulator.__main__",
            "from .server import serve\nfrom ..tokens import counter",
        ),
        (breaks_table, "__init__", "from .api import process_file"),
        (
            breaks_table,
            "workers.pending",
            "if TYPE_CHECKING:\n    from ..ratelimit.token_bucket import TokenBucket",
        ),
        (breaks_thread_makers, "engine.run", "import threading\ndef f(t: threading.Thread): ..."),
        (breaks_lock_makers, "engine.run", "import threading\nlock: threading.Lock"),
        (breaks_lock_makers, "simulator.limits", "import threading\nlock = threading.Lock()"),
        (
            breaks_plain_lock_makers,
            "engine.account",
            f"from {PACKAGE}.runtime.locks import InterruptSafeLock\nlock = InterruptSafeLock()",
        ),
        (breaks_habits, "engine.run", "import time\nnow = time.monotonic()"),
        (breaks_sizes, "engine.run", "def f():\n  '''a\n  b'''\n" + "  pass\n" * 39),
    ],
)
def test_the_rules_let_pass_what_is_right(
    rule: Callable[[Module], Iterator[str]], name: str, source: str
) -> None:
    """A rule finds nothing where there is nothing."""
    assert list(rule(Module.parse(name, source))) == []
