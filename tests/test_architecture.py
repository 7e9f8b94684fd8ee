"""Import graph of the package: imports point one way between folders, and no module imports itself in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cmsa_fast

PACKAGE = Path(cmsa_fast.__file__).parent

# What each folder (or module at the top level) may import from the rest of the package.
MAY_IMPORT: dict[str, set[str]] = {
    "system": set(),
    "kernels": set(),
    "nn": {"kernels"},
    "data": {"system"},
    "models": {"kernels", "nn", "data", "system"},
    "training": {"nn", "models", "data", "system"},
    "evaluation": {"nn", "models", "data", "system"},
    "metrics": {"evaluation"},
    "predictor": {"models", "data", "evaluation", "system"},
    "export": {"kernels", "nn", "models", "data"},
    "hub": {"models", "training", "evaluation", "system", "__init__"},
    "page": {"data", "evaluation", "predictor"},
    "cli": {"hub", "nn", "models", "data", "training", "evaluation", "predictor", "page", "export", "system"},
    "__main__": {"cli"},
    "__init__": set(),
}


def module_files() -> dict[str, Path]:
    """Dotted name of every module below the package -> its file; a package stands for its `__init__.py`."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports, inside functions and under TYPE_CHECKING too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module == "__init__":
        package = []
    result = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.startswith("cmsa_fast.")]
            result |= {target.removeprefix("cmsa_fast.") for target in targets}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif node.module and node.module.partition(".")[0] == "cmsa_fast":
                base = []
            else:
                continue
            named = (node.module or "").removeprefix("cmsa_fast") if not node.level else node.module
            base = [*base, *filter(None, (named or "").split("."))]
            for alias in node.names:
                submodule = ".".join([*base, alias.name])
                result.add(submodule if submodule in known else ".".join(base) or "__init__")
    return result - {module}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = module_files()
    return {module: imports(module, path, known) for module, path in known.items()}


def test_every_import_is_a_module_of_the_package(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 80
    unknown = {target for targets in graph.values() for target in targets} - set(graph)
    assert unknown == set()


def test_imports_between_folders_point_one_way(graph: dict[str, set[str]]) -> None:
    wrong = []
    for module, targets in graph.items():
        folder = module.partition(".")[0]
        for target in targets:
            other = target.partition(".")[0]
            if other not in {folder, "__init__"} and other not in MAY_IMPORT[folder]:
                wrong.append(f"{module} imports {target}")
    assert sorted(wrong) == []


def test_no_module_imports_itself_in_a_circle(graph: dict[str, set[str]]) -> None:
    # A package's __init__ gathers names of its modules, which import each other and not the package.
    within = {
        module: {target for target in targets if not module.startswith(f"{target}.")}
        for module, targets in graph.items()
    }
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' -> '.join(error.args[1])}")
    gathered = [
        f"{module} imports its own package {target}"
        for module, targets in graph.items()
        for target in targets
        if module.startswith(f"{target}.") and target != "__init__"
    ]
    assert gathered == []


def test_modules_of_the_package_import_each_other_relatively() -> None:
    absolute = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("cmsa_fast"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("cmsa_fast") for a in node.names))
    ]
    assert absolute == []
