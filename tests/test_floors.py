"""Rooms stand on floors: each imports only from those below, and loads no library that it has no use for."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "distill_dynamics"

FLOORS = {
    "errors": 0,
    "files": 0,
    "lazy": 0,
    "signals": 0,
    "text": 0,
    "yaml_text": 0,
    "losses": 1,
    "schedule": 1,
    "dynamics.measures": 1,
    "dynamics": 1,  # profile, signature: without torch
    "models": 2,
    "weights": 2,
    "dynamics.profiler": 3,
    "data": 3,
    "runs": 4,
    "teacher_cache": 5,
    "figures": 5,
    "tables": 5,
    "train": 6,
    "callbacks": 6,
    "report": 6,
    "cluster": 7,
    "analysis": 8,
    "cli": 8,
    "__main__": 8,
}
BESIDE = {
    ("callbacks", "train"),
    ("train", "callbacks"),  # those without which there is no training: the epoch's row, the watch for NaN
    ("tables", "figures"),
    ("dynamics.measures", "losses"),
    ("cli", "analysis"),
    ("__main__", "cli"),
}
"""Rooms of one floor, the first of which may import the second."""

LIBRARIES = {
    "torch": {
        *("losses", "schedule", "dynamics.measures", "dynamics.profiler", "models", "data", "teacher_cache"),
        *("train", "callbacks", "cluster", "analysis", "cli"),
    },
    "timm": {"models", "data"},
    "torchvision": {"data"},
    "torchmetrics": {"train"},
    "lightning": {"data", "train", "callbacks", "cluster", "cli"},
    "matplotlib": {"figures", "callbacks", "report"},
    "wandb": {"callbacks", "cluster", "report", "cli"},
    "jsonargparse": {"cli"},
    "safetensors": {"models"},
    "litdata": {"data"},
    "onnx": {"models"},
    "onnxruntime": {"models"},
    "pandas": set(),
}
"""Which rooms may import a library."""

LOADED = {
    "": {
        "errors, files, signals, text, yaml_text": set(),
        "cli.main": set(),
        "runs": set(),
        "dynamics.profile, dynamics.signature": set(),
        "tables": set(),
        "figures": {"matplotlib"},
        "report": {"matplotlib"},
    },
    "torch": {
        "losses, schedule, dynamics.measures": {"torch"},
        "dynamics.profiler": {"torch"},
    },
}
"""What may be loaded once every module of a room is: in a fresh interpreter, or in one that has torch."""

EXTRAS = {"report.dashboard", "report.panels"}
"""Modules that need an extra, or what a single command has use for."""

EXCEPTIONS = {}
"""What is still to be mended, and why it is not yet; what is mended leaves the list."""


def room_of(module: str) -> str:
    """The longest entry of FLOORS that a module, named from the package on, is in."""
    return max((room for room in FLOORS if f"{module}.".startswith(f"{room}.")), key=len)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module != "__init__":  # of the package: names alone
            yield module, path


def imports(path: Path) -> set[str]:
    """What a file imports, also inside functions; not what only a type checker reads."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for name in node.names:
                inner = PACKAGE.parent.joinpath(*(node.module or "").split("."), name.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.add(f"{node.module}.{name.name}" if is_module else str(node.module))
    return found


def test_no_file_is_longer_than_300_lines():
    assert not {name for name, path in modules() if len(path.read_text().splitlines()) > 300}


def breaches() -> Iterator[tuple[str, str]]:
    """Who imports what he should not."""
    for module, path in modules():
        here = room_of(module)
        for name in sorted(imports(path)):
            package, _, inner = name.partition(".")
            if LIBRARIES.get(package, {here}).isdisjoint({here}):
                yield module, package
            if package == "distill_dynamics" and inner:
                there = room_of(inner)
                if here != there and FLOORS[there] >= FLOORS[here] and (here, there) not in BESIDE:
                    yield module, inner


def test_no_room_imports_from_a_floor_above_nor_a_library_that_is_not_its_own():
    assert {*breaches()} == EXCEPTIONS.keys()


CHILDREN = """
import importlib, json, os, sys
wanted, libraries, found = json.loads(sys.argv[1]), json.loads(sys.argv[2]), {}
for before, rooms in wanted:  # in this order: a child has what its parent has
    if before:
        importlib.import_module(before)
    for room, names in rooms.items():
        reading, writing = os.pipe()
        if not os.fork():
            for name in names:
                importlib.import_module(name)
            os.write(writing, json.dumps([name for name in libraries if name in sys.modules]).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as answer:
            found[room] = json.load(answer)
print(json.dumps(found))
"""


def test_a_room_loads_no_library_that_it_has_no_use_for():
    named = [module for module, _ in modules() if module not in EXTRAS]

    def members(rooms: str) -> list[str]:
        rooms = rooms.split(", ")
        inside = [m for m in named for room in rooms if f"{m}.".startswith(f"{room}.")]
        return [f"distill_dynamics.{module}" for module in inside]

    wanted = [(before, {rooms: members(rooms) for rooms in table}) for before, table in LOADED.items()]
    command = [sys.executable, "-c", CHILDREN, json.dumps(wanted), json.dumps([*LIBRARIES])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout)
    allowed = {rooms: libraries for table in LOADED.values() for rooms, libraries in table.items()}
    assert found.keys() == allowed.keys()
    for rooms, libraries in found.items():
        assert not {*libraries} - allowed[rooms], rooms


@pytest.mark.parametrize("name", ["", ".callbacks", ".data", ".losses", ".models"])
def test_what_a_room_offers_is_the_same_to_python_and_to_a_type_checker(name):
    room = importlib.import_module(f"distill_dynamics{name}")
    declared = {}
    for node in ast.walk(ast.parse(Path(room.__file__).read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                declared |= {one.name: line.module for one in line.names}
    assert {*room.__all__} - {"__version__"} == declared.keys()
    for one, module in declared.items():
        assert getattr(room, one) is getattr(sys.modules[module], one)
        assert one in dir(room)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = room.no_such_name


HELP = """
import sys
from distill_dynamics.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in ("torch", "lightning", "timm", "numpy", "wandb") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["--version"], 0), ([], 2), (["fitt"], 2), (["--trainer.max_epochs", "3", "fit"], 2)],
)
def test_help_and_a_misspelt_command_load_no_torch(words, status):
    command, environment = [sys.executable, "-c", HELP, *words], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.returncode == status


READS = """
import sys
from pathlib import Path
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.findings import findings
runs = load_runs([Path(sys.argv[1])])
assert runs[0].config and runs[0].metrics and runs[0].profiles.students
findings(Study(runs))
print([name for name in ("torch", "lightning", "timm", "wandb") if name in sys.modules])
"""


def test_a_run_is_read_and_summed_up_without_torch():
    command = [sys.executable, "-c", READS, str(ROOT / "tests" / "fixtures" / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
