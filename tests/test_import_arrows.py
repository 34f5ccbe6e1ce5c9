"""Imports point down only, families never import each other, and only a few rooms print."""

import ast
from pathlib import Path

import pytest

import advml

ROOT = Path(advml.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# Floors from top to bottom. A room imports from its own and from lower floors, never from another room of its floor.
FLOORS = [
    {"advml.__main__"},
    {"advml.cli"},
    {"advml.commands", "advml.api", "advml.flower"},
    {"advml.report"},
    {"advml.runner"},
    {"advml.methods"},
    {"advml.models", "advml.data"},
    {"advml.nn"},
    {"advml.contracts", "advml.compose"},
    {"advml.overrides"},
    {"advml.config", "advml.roots", "advml.artifacts", "advml.spec"},
    {"advml.registry"},
    {"advml.errors", "advml"},
]
# runner/worker.py and runner/follower.py are main programs like cli.py: the process of one job, and one that helps it.
MAY_PRINT = {"cli.py", "commands", "runner/progress.py", "runner/worker.py", "runner/follower.py"}
# `from advml import api` inside the package's own __getattr__: advml.run and advml.load, on first use.
EXCEPTIONS = {("advml", "advml.api")}


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """advml.runner.loop → advml.runner; a module beside the rooms is its own."""
    return ".".join(module.split(".")[:2])


def floor_of(module):
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms]
    return floor


def is_module(name):
    path = ROOT.parent / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path):
    """The advml modules that a file imports, anywhere in it; `from advml.runner import files` is advml.runner.files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "advml")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module and node.module.split(".")[0] == "advml":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if is_module(inner) else node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    here = name_of(path)
    for target in imports_of(path):
        if (here, target) in EXCEPTIONS or room_of(here) == room_of(target):
            continue
        assert floor_of(target) > floor_of(here), f"{here} imports {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").rglob("*.py")), ids=name_of)
def test_families_do_not_know_each_other(path):
    family = name_of(path).split(".")[2:3]
    for target in imports_of(path):
        if target.startswith("advml.methods."):
            assert target.split(".")[2:3] == family, f"{name_of(path)} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_a_few_rooms_print(path):
    where = path.relative_to(ROOT)
    if str(where) in MAY_PRINT or where.parts[0] in MAY_PRINT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name_of(path)}:{node.lineno} prints"
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
            assert not (isinstance(node.value, ast.Name) and node.value.id == "sys"), f"{name_of(path)}:{node.lineno}"


def test_methods_open_no_file_read_no_clock_and_keep_no_generator():
    forbidden = {"time", "datetime", "random", "os", "pathlib", "logging", "shutil", "subprocess"}
    for path in (ROOT / "methods").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, name_of(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "print"), f"{name_of(path)}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("manual_seed", "seed"), f"{name_of(path)}:{node.lineno}"


def test_every_module_is_on_a_floor_and_every_file_can_be_read_in_one_sitting():
    for path in MODULES:
        floor_of(name_of(path))
        assert len(path.read_text().splitlines()) <= 420, path


def test_the_arrows_can_fail():
    assert floor_of("advml.methods.supervised") < floor_of("advml.nn.training")
    assert floor_of("advml.models.mlp") == floor_of("advml.data.plain")
    assert list(imports_of(ROOT / "runner" / "loop.py")).count("advml.runner.budget") >= 1
    assert "advml.runner.files" in set(imports_of(ROOT / "runner" / "run.py"))
