"""What an installation brings along: everything that the package imports, and no torch where none is needed."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(requirements: list[str]) -> set[str]:
    """Distribution names of requirement lines, normalized."""
    return {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in requirements}


def imported() -> dict[str, str]:
    """Every foreign top-level module that the package imports anywhere -> a file that does."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found.update({name.split(".")[0]: path.name for name in names})
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"partshot"}}


def test_train_extra_names_everything_the_package_imports():
    """[dev] hides what [train] lacks; a user who installs [train] would be the first to notice."""
    brought = named(PROJECT["dependencies"]) | named(PROJECT["optional-dependencies"]["train"])
    owners = packages_distributions()
    missing = {
        name: path
        for name, path in imported().items()
        if not brought & {owner.lower().replace("_", "-") for owner in owners.get(name, [])}
    }
    assert missing == {}


@pytest.mark.parametrize("heavy", ["torch", "torchvision", "timm", "jaxtyping"])
def test_core_stays_light(heavy):
    """Predicting and serving need only the core."""
    assert heavy not in named(PROJECT["dependencies"])
