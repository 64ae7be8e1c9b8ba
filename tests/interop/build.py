"""Builds the peers that need it: ``python -m tests.interop.build``, as ``nox -s interop`` does.

The peers in a compiled language have a folder in ``peers/``, whose manifest names exact versions of
all that they use directly. The folder is copied to ``$XDG_CACHE_HOME/trio-wsstream-peers``
(``~/.cache`` if that is not set), under a name with the manifest's hash, and built there. So lock
files and outputs stay out of the tree, and another run builds only what has changed. All of that
may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

HERE: Final = Path(__file__).parent
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@attrs.frozen
class Build:
    """How the peers in one language are built.

    Attributes:
      name: the folder in ``peers/``.
      manifest: the file there that names versions.
      tools: the programs that are needed, with what to install for each.
      run: builds, in the folder that it is given.
      find: a peer's program in that folder: a file that was built, and the command to run it.
    """

    name: str
    manifest: str
    tools: dict[str, str]
    run: Callable[[Path], None]
    find: Callable[[Path, str], tuple[Path, list[str | Path]]]

    @property
    def source(self) -> Path:
        return HERE / "peers" / self.name

    @property
    def target(self) -> Path:
        digest = hashlib.sha256((self.source / self.manifest).read_bytes()).hexdigest()
        return CACHE / "trio-wsstream-peers" / f"{self.name}-{digest[:16]}"

    def missing_tool(self) -> tuple[str, str] | None:
        """A program that is needed and not there, and what to install; None if all are there."""
        return next((tool for tool in self.tools.items() if shutil.which(tool[0]) is None), None)

    def update(self) -> None:
        """Copy what has changed, and build.

        Raises:
          subprocess.CalledProcessError: the tool has failed, and said why.
        """
        for file in filter(Path.is_file, self.source.rglob("*")):
            copy = self.target / file.relative_to(self.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # A file that has not changed keeps its time, from which the tools conclude that.
            if not copy.exists() or copy.read_bytes() != file.read_bytes():
                copy.write_bytes(file.read_bytes())
        self.run(self.target)


def run_cargo(target: Path) -> None:
    subprocess.run(["cargo", "build", "--quiet", "--release"], cwd=target, check=True)
    manifest = tomllib.loads((target / "Cargo.toml").read_text())
    for program, options in manifest["package"]["metadata"]["programs"].items():
        if not (target / "bin" / program).exists():
            command = ["cargo", "install", "--quiet", "--debug", program, *options]
            command += ["--root", str(target), "--target-dir", str(target / "target" / program)]
            subprocess.run(command, cwd=target, check=True)


def find_rust(target: Path, program: str) -> tuple[Path, list[str | Path]]:
    installed = target / "bin" / program
    built = installed if installed.exists() else target / "target" / "release" / program
    return built, [built]


def run_go(target: Path) -> None:
    # Without -mod=mod it would ask for a go.sum, which is a lock file.
    command = ["go", "build", "-mod=mod", "-o", f"{target / 'bin'}/", "./..."]
    subprocess.run(command, cwd=target, check=True)


def find_go(target: Path, program: str) -> tuple[Path, list[str | Path]]:
    return target / "bin" / program, [target / "bin" / program]


def run_maven(target: Path) -> None:
    command = ["mvn", "--batch-mode", "--quiet", "compile", "dependency:copy-dependencies"]
    subprocess.run(command, cwd=target, check=True)


def find_java(target: Path, program: str) -> tuple[Path, list[str | Path]]:
    classes = target / "target" / "classes"
    path = f"{classes}:{target / 'target' / 'dependency'}/*"
    return classes / "peers" / f"{program}.class", ["java", "-cp", path, f"peers.{program}"]


BUILDS: Final = {
    build.name: build
    for build in (
        Build(
            "rust",
            "Cargo.toml",
            {"cargo": "Rust 1.85 or later, https://rustup.rs"},
            run_cargo,
            find_rust,
        ),
        Build("go", "go.mod", {"go": "Go 1.26 or later, https://go.dev/dl"}, run_go, find_go),
        Build(
            "java",
            "pom.xml",
            {
                "javac": "a JDK, 17 or later: apt-get install default-jdk-headless",
                "mvn": "Maven: apt-get install maven",
            },
            run_maven,
            find_java,
        ),
    )
}


def main() -> int:
    """Build what is named, or all; 1 if one of these builds failed."""
    failed = 0
    for name in sys.argv[1:] or BUILDS:
        build = BUILDS[name]
        if tool := build.missing_tool():
            print(f"no peers in {name}: there is no {tool[0]}; install {tool[1]}")
            continue
        print(f"building the peers in {name}, in {build.target}", flush=True)
        try:
            build.update()
        except subprocess.CalledProcessError as error:
            print(f"no peers in {name}: {error}")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
