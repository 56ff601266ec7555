"""Imports point one way, and what the service loads needs neither torch nor scipy."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ALLOWED = {
    "recsys": {"recsys"},
    "models": {"models", "recsys"},
    "serving": {"serving", "recsys"},
    "pipelines": {"pipelines", "models", "recsys"},
}
EXCEPTIONS = {"pipelines/service_commands.py": {"serving"}, "pipelines/key_commands.py": {"serving"}}
NOT_IN_SERVING = {"torch", "jaxtyping", "scipy", "accelerate", "models", "pipelines"}


def files_of(package: str) -> list[Path]:
    """Its Python files."""
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported_modules(file: Path) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_file(module: str) -> Path | None:
    """The file of a module of this repository."""
    path = REPOSITORY / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_up_the_list(package: str) -> None:
    assert files_of(package)
    for file in files_of(package):
        name = str(file.relative_to(REPOSITORY))
        for module in imported_modules(file):
            top = module.split(".")[0]
            allowed = ALLOWED[package] | EXCEPTIONS.get(name, set())
            assert top not in ALLOWED or top in allowed, f"{name} imports {module}; {package} may import {allowed}"


def test_what_serving_loads_needs_no_torch() -> None:
    reached = dict.fromkeys(files_of("serving"), "started by `recsys serve`")
    waiting = list(reached)
    while waiting:
        file = waiting.pop()
        name = str(file.relative_to(REPOSITORY))
        for module in imported_modules(file):
            assert module.split(".")[0] not in NOT_IN_SERVING, f"{name} ({reached[file]}) imports {module}"
            found = own_file(module)
            if found is not None and found not in reached:
                reached[found] = f"imported by {name}, {reached[file]}"
                waiting.append(found)
    assert REPOSITORY / "recsys" / "bundle.py" in reached


@pytest.mark.parametrize("framework", ["mlflow", "faiss", "recbole", "transformers", "pyspark", "pyarrow"])
def test_each_framework_enters_by_few_doors(framework: str) -> None:
    doors = {
        "mlflow": {"recsys/tracking.py", "recsys/registry.py"},
        "faiss": {"recsys/index.py", "recsys/approximate.py"},
        "recbole": set(),
        "transformers": {"recsys/pretrained.py"},
        "pyspark": {"pipelines/spark_engine.py"},
        "pyarrow": {"pipelines/spark_engine.py"},
    }
    users = {
        str(file.relative_to(REPOSITORY))
        for package in ALLOWED
        for file in files_of(package)
        if any(module.split(".")[0] == framework for module in imported_modules(file))
    }
    assert users == doors[framework]


def test_every_module_that_is_walked_can_be_found() -> None:
    assert all(importlib.util.find_spec(package) for package in ALLOWED)
