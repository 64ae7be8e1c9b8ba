"""Check what a wheel and an sdist contain: ``python tests/packaging_contents.py WHEEL SDIST``.

``nox -s package`` builds both and runs this. The wheel must contain each module of the package and
nothing but the package and its metadata. The sdist must contain what its users need to run the
tests and to build the documentation, and nothing that a tool has made.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
MADE_BY_TOOLS = {"__pycache__", "node_modules", "_build", "results", ".nox", ".venv"}
NEEDED = ["README.rst", "LICENSE", "CONTRIBUTING.rst", "tests/conftest.py", "docs/conf.py"]


def modules() -> set[str]:
    """Return the files of the package that belong into a wheel."""
    package = ROOT / "trio_wsstream"
    kinds = [*package.rglob("*.py"), package / "py.typed"]
    return {path.relative_to(ROOT).as_posix() for path in kinds}


def check_wheel(path: str) -> None:
    names = set(zipfile.ZipFile(path).namelist())
    metadata = {name for name in names if ".dist-info/" in name.partition("/")[0] + "/"}
    assert names - metadata == modules(), sorted((names - metadata) ^ modules())
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def check_sdist(path: str) -> None:
    with tarfile.open(path) as archive:
        members = archive.getnames()
    names = {name.partition("/")[2] for name in members}
    assert modules() <= names
    for name in NEEDED:
        assert name in names, f"{name} is missing"
    for name in names:
        assert not MADE_BY_TOOLS & set(PurePosixPath(name).parts), f"{name} does not belong there"


if __name__ == "__main__":
    check_wheel(sys.argv[1])
    check_sdist(sys.argv[2])
    print("The wheel and the sdist contain what they should.")
