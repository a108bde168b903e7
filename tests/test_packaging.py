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


@pytest.mark.parametrize("script", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_names_that_exist(script):
    """A benchmark that takes hours must not fail at its first line. Read from sources: importing takes longer."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module.startswith(("partshot.", "bench_")):
            continue
        folder = ROOT / ("bench" if node.module.startswith("bench_") else "src")
        path = folder / f"{node.module.replace('.', '/')}.py"
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        known = {
            alias.asname or alias.name for n in ast.parse(path.read_text()).body for alias in getattr(n, "names", ())
        }
        known |= defined(path)
        assert {alias.name for alias in node.names} <= known | {p.stem for p in path.parent.glob("*.py")}, node.module


def defined(path: Path) -> set[str]:
    """Names that a module assigns or defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
        found |= {node.name} if hasattr(node, "name") else set()
        found |= {alias.asname or alias.name for alias in getattr(node, "names", ())}
    return found
