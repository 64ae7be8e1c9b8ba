"""Imports inside the package point downwards only, as CONTRIBUTING.rst says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trio_wsstream

PACKAGE = Path(trio_wsstream.__file__).parent
WITHOUT_IO = ["_frames", "_masking", "_protocol", "_keepalive", "_read_size", "_events"]
ABOVE_THE_STREAM = {"__init__", "_open", "_serve", "anyio", "_bridge", "testing"}
"""The only modules of the package that may know `_stream`."""


def imports_of(module: str) -> set[str]:
    """Return the names of the modules that a module of the package imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("module", WITHOUT_IO)
def test_a_module_without_io_does_not_import_trio(module: str) -> None:
    assert not imports_of(module) & {"trio", "trio_websocket", "socket", "ssl"}


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_only_what_stands_above_the_stream_imports_it(module: str) -> None:
    if module not in ABOVE_THE_STREAM:
        assert "_stream" not in imports_of(module)


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_only_the_takeover_touches_private_names_of_trio_websocket(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and module != "_takeover":
            assert not any(part.startswith("_") for part in (node.module or "").split(".")[1:])
