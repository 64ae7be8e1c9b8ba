"""Fuzz a target with atheris, guided by the coverage of the library.

    python -m tests.fuzz TARGET FOLDER [option of libFuzzer ...]

FOLDER keeps the inputs that reached new code, for the next run. An input that breaks a property is
written to a file ``crash-...`` in FOLDER. Add it as a line to ``tests/corpus/TARGET.txt``, and it
becomes a test.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["trio_wsstream"]):
    from .targets import TARGETS, corpus, seeds

name, folder, *options = sys.argv[1:]
home = Path(folder) / name
home.mkdir(parents=True, exist_ok=True)
for seed in seeds() + corpus(name):
    (home / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
limits = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", f"-artifact_prefix={home}/"]
atheris.Setup([sys.argv[0], *limits, *options, str(home)], TARGETS[name])
atheris.Fuzz()
