"""The scripts of docs/tools, which are not part of the package."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from conftest import REPOSITORY


def tool(name: str) -> ModuleType:
    """Import docs/tools/NAME.py."""
    spec = spec_from_file_location(f"docs_{name}", REPOSITORY / "docs" / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
