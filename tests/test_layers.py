"""Who may import whom, and what an import may cost."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asyncfetch

PACKAGE = Path(asyncfetch.__file__).parent

# Each room may import from those named, and from nothing else of the package.
ALLOWED = {
    "errors": set(),
    "_version": set(),
    # Facts of a server: what the client checks by, the archive writes down.
    "_alyx_schema": set(),
    "_neurovault_schema": set(),
    "_body": {"errors"},
    "_model": {"_body", "errors"},
    "_retry": {"errors"},
    "_hints": set(),
    "_pace": set(),
    # How a file is locked is known where datasets lie.
    "_profile": {"_pace", "_store"},
    "_health": set(),
    "_gate": {"_health", "_model", "_pace", "errors"},
    "_auth": {"_model", "errors"},
    "_threads": set(),
    "_together": {"_model", "_threads"},
    "_names": set(),
    # Bytes on their way to a stored file are kept by the rules of the store.
    "_partial": {"_body", "_model", "_store", "errors"},
    "_depot": {"_bucket", "_names", "_store", "errors"},
    "_files": {
        "_body",
        "_bucket",
        "_depot",
        "_model",
        "_names",
        "_partial",
        "_store",
        "errors",
    },
    "_transport": {"_auth", "_body", "_model", "_partial", "_threads", "errors"},
    "_absence": set(),
    "_exchange": {
        "_absence",
        "_auth",
        "_body",
        "_gate",
        "_health",
        "_hints",
        "_model",
        "_partial",
        "_profile",
        "_retry",
        "_threads",
        "_transport",
        "_version",
        "errors",
    },
    "_decode": {"_body", "_model", "errors"},
    "swc": {"_plot", "_swc_out", "errors"},
    "_plot": {"errors"},
    "_swc_out": {"errors", "swc"},  # of swc the type of a trace alone
    "_store": {"errors"},
    "_objects": {"errors"},
    # The same seam as that of a directory.
    "_bucket": {"_objects", "_store", "errors"},
    "_ledger": {"_bucket", "_model", "_objects", "_store", "errors"},
    "_dataset": {
        "_depot",
        "_files",
        "_ledger",
        "_model",
        "_names",
        "_objects",
        "_store",
        "errors",
    },
    "_compact": {"_dataset", "_ledger", "_objects", "_store", "errors"},
    "_verify": {
        "_ledger",
        "_model",
        "_objects",
        "_store",
        "_verify_files",
        "errors",
    },
    "_verify_files": {"_depot", "_files", "_ledger", "_store", "errors"},
    "_progress": {"_model"},
    "_engine": {
        "_body",
        "_dataset",
        "_files",
        "_ledger",
        "_decode",
        "_exchange",
        "_model",
        "_objects",  # what a destination may be
        "_partial",
        "_progress",
        "_threads",
        "_together",
        "_version",
        "errors",
    },
    "_estimate": {"_dataset", "_engine", "_ledger", "_model", "_objects", "errors"},
    "services": {
        "_alyx_schema",
        "_neurovault_schema",
        "_body",  # answers that are kept, as if they came again
        "_dataset",  # where the files of a download are
        "_absence",  # a service says how its 404 is to be read
        "_auth",  # a service says how it knows its users
        "_decode",
        "_engine",
        "_exchange",
        "_health",  # which answers are no failures of the host
        "_model",
        "_partial",  # files that an earlier dataset has
        "_threads",  # files that single calls read and write
        "errors",
        "services",
        "swc",
    },
    "testing": {"_alyx_schema", "_neurovault_schema", "errors", "swc", "testing"},
    # One pass over two tables: what the first one fetched plans the second.
    "_mirror": {
        "_dataset",
        "_engine",
        "_ledger",
        "_model",
        "_objects",
        "errors",
        "services",
    },
    "_demo": {"_dataset", "_verify", "errors"},  # what it runs, it runs as processes
    "_cli": {
        "_compact",
        "_dataset",
        "_demo",
        "_engine",
        "_estimate",
        "_mirror",
        "_objects",
        "_plot",
        "_progress",
        "_verify",
        "_model",
        "_version",
        "errors",
        "services",
        "testing",
    },
    "sync": {"_engine", "_model", "errors", "services"},
    "__main__": {"_cli"},
    "__init__": {
        "_compact",
        "_dataset",
        "_engine",
        "_model",
        "_objects",
        "_version",
        "errors",
        "services",
        "sync",
    },
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path):
    rooms = {one.stem if one.suffix else one.name for one in PACKAGE.iterdir()}
    found = {
        name.split(".")[1]
        for name in imported(path)
        if name.startswith("asyncfetch.") and name.split(".")[1] in rooms
    }
    assert found - {room(path)} <= ALLOWED[room(path)] - {room(path)}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("aiohttp", {"_transport", "testing"}),
        ("aiolimiter", {"_gate"}),
        ("obstore", {"_bucket", "_objects"}),
        ("typer", {"_cli"}),
        ("rich", {"_cli", "_progress"}),
    ],
)
def test_a_library_is_known_in_one_room(library, rooms):
    users = {
        room(path)
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users == rooms


def test_only_the_engine_and_the_archive_start_tasks():
    starters = {
        room(path)
        for path in modules()
        if "create_task_group" in path.read_text(encoding="utf-8")
    }
    assert starters <= {"_engine", "testing", "_cli"}


HEAVY = "{'aiohttp', 'pyarrow', 'pandas', 'obstore', 'numpy', 'rich'}"


@pytest.mark.parametrize(
    "code",
    [
        "import asyncfetch",
        "import asyncfetch._cli; assert asyncfetch._cli.run(['--help']) == 0",
        "import asyncfetch._cli; assert asyncfetch._cli.run(['fetch', '--help']) == 0",
    ],
)
def test_an_import_and_help_load_nothing_heavy(code):
    code += f"\nimport sys; assert not {HEAVY} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_program_takes_the_allocator_that_keeps_the_least():
    code = """
import contextlib
from asyncfetch import _cli
with contextlib.suppress(SystemExit):
    _cli.main()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    environment = dict(os.environ)
    environment.pop("ARROW_DEFAULT_MEMORY_POOL", None)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ended.stdout.split()[-1] == "system"
