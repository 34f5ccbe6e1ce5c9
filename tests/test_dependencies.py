"""pyproject.toml names every package that the code imports, so that none comes only by way of another."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCAL = {"advml", "hydra_plugins"}


def imported(folder):
    """The top-level packages imported anywhere below a folder, without the standard library and its own modules."""
    own = {path.stem for path in folder.rglob("*.py")}
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - own - LOCAL - sys.stdlib_module_names


def normal(name):
    """As package indices compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {normal(re.match(r"[A-Za-z0-9_.-]+", line)[0]) for line in requirements}


def lacking(folders, declared):
    given = packages_distributions()
    packages = set().union(*(imported(ROOT / folder) for folder in folders))
    assert "torch" in packages
    return {package for package in packages if not declared & {normal(one) for one in given.get(package, [package])}}


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = names(project["dependencies"])
    asked = ("export", "search", "tensorboard", "mlflow", "privacy", "flower")
    optional = names([line for extra in asked for line in extras[extra]])
    assert lacking(["advml", "hydra_plugins"], needed | optional) == set()
    assert lacking(["tests"], needed | names(extras["dev"])) == set()
    assert lacking(["advml"], optional) != set()  # what is not declared is found
