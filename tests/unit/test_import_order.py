"""Imports go down only, without a circle, and no function imports a module of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import rqjobs

PACKAGE = Path(rqjobs.__file__).parent
INTERNALS = Path(__file__).parents[2] / "docs" / "internals.md"
LAYERS = (  # a module imports what stands above it, or in its own layer
    {
        "version",
        "texts",
        "alert_rules",
        "config",
        "hiding",
        "processes",
        "times",
        "logs",
        "conversion",
    },
    {"instrumentation", "inherited_resources"},
    {"connection", "generated_secrets"},
    {"serializers"},
    {"policies"},
    {"signatures"},
    {"catalog"},
    {"broker"},
    {
        "rq_patches",
        "webhooks",
        "job_fields",
        "stored_results",
        "coroutines",
        "raised",
        "results",
        "row_sources",
        "loops",
        "job_logs",
        "plain_jobs",
        "hooks",
        "telemetry",
        "retrying",
        "storing",
        "outbox",
        "transactions",
        "call_options",
        "jobs",
        "queues",
        "bulk",
        "delayed",
        "failed",
        "failure_inbox",
        "pauses",
        "cancellation",
        "worker_commands",
        "passed_results",
    },
    {"flows"},
    {"schedules"},
    {
        "attempts",
        "job_record",
        "stats",
        "rates",
        "overview",
        "job_metrics",
        "job_filters",
        "job_cursors",
        "job_search",
        "bulk_actions",
        "alerts",
        "checks",
    },
    {"scheduler"},
    {"maintenance"},
    {"worker"},
    {""},  # the public API
    {"demo"},
    {"dev"},
    {"testing"},
    {"web"},
    {"cli"},
    {"flask_extension"},
    {"__main__"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def name_of(path: Path) -> str:
    """The name of a module within the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        package, _, module = name.partition(".")
        if package == "rqjobs":
            while module not in MODULES:  # a name within a module
                module = module.rpartition(".")[0]
            yield module


def room(module: str) -> str:
    return module.partition(".")[0]


def test_imports_go_down_only():
    wrong = [
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        for other in imported(node)
        if LAYER[room(other)] > LAYER[room(module)]
        and not (module == "" and other in ("web", "flask_extension"))  # its `if TYPE_CHECKING`
    ]
    assert not wrong


def test_the_internals_page_lists_the_layers():
    lines = re.findall(r"^[0-9]+\. .*", INTERNALS.read_text(encoding="utf-8"), flags=re.M)
    listed = [set(re.findall(r"`(\w+)/?`", line)) for line in lines]
    assert listed == [{room or "__init__" for room in rooms} for rooms in LAYERS]


def test_imports_have_no_circle():
    graph = {
        module: {other for node in tree.body for other in imported(node)} - {module}
        for module, tree in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_function_imports_a_module_of_the_package():
    hidden = [
        f"{module}.{function.name}"
        for module, tree in MODULES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if any(imported(node))
    ]
    assert not hidden
