# SPDX-License-Identifier: Apache-2.0
"""The extension with a few of its objects compiled anew from other sources, and linked again.

`make build` leaves every object and how it was compiled (build.ninja). A faulty source needs only
the objects that include it; all others are those of the checkout. So a fault costs seconds, and
nothing that it does not touch can differ.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# What a fault of a device is looked for in. The operators in csrc/ops stay as they are: they take
# minutes to compile, and call what is below them; the cache is compiled for a fault of its own. On
# the GPU only fp32 shows a fault.
SOURCES = {
    "cpu": ("csrc/cpu/*.cpp", "csrc/common/*.cpp"),
    "cuda": ("csrc/cuda/instances/*_float32.cu",),
}
CACHE = "csrc/ops/topk_cache.cpp"


class NotBuilt(RuntimeError):
    """The checkout has no extension to start from."""


@lru_cache(maxsize=1024)
def _includes(file: Path) -> frozenset[Path]:
    """`file` and everything that it includes of this project."""
    found = {file}
    for name in re.findall(r'^\s*#\s*include "([^"]+)"', file.read_text(), re.MULTILINE):
        for folder in (file.parent, ROOT / "csrc"):
            if (folder / name).is_file():
                found |= _includes((folder / name).resolve())
                break
    return frozenset(found)


def affected(file: str, device: str) -> list[Path]:
    """The sources, relative to the checkout, that a fault in `file` changes on `device`."""
    if file == CACHE:
        return [Path(CACHE)]
    sources = sorted(path for pattern in SOURCES[device] for path in ROOT.glob(pattern))
    return [path.relative_to(ROOT) for path in sources if (ROOT / file) in _includes(path)]


def _ninja() -> str:
    """That of this Python's environment, as torch's build takes it, or that of the system."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("ninja", path=places)
    if found is None:
        raise NotBuilt("no ninja in this Python's environment or on the PATH")
    return found


class Built:
    """The extension of this checkout, as `make build` left it."""

    def __init__(self) -> None:
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.folder = ROOT / "build" / f"temp.{tag}"
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        self.library = ROOT / "gvr_topk" / f"_C{suffix}"
        record = ROOT / "gvr_topk" / "_build.json"
        if not (self.folder / "build.ninja").is_file() or not record.is_file():
            raise NotBuilt("no extension was built here: run `make build` first")
        self.cuda = json.loads(record.read_text())["cuda"] is not None
        told = subprocess.run(
            [_ninja(), "-C", str(self.folder), "-t", "compdb", "compile", "cuda_compile"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        entries = json.loads(told[told.index("[") :])
        self.commands = {Path(e["file"]).relative_to(ROOT): e["command"] for e in entries}
        self.objects = {Path(e["file"]).relative_to(ROOT): Path(e["output"]) for e in entries}
        for source, made in self.objects.items():
            newest = max(path.stat().st_mtime for path in _includes(ROOT / source))
            if not made.is_file() or made.stat().st_mtime < newest:
                raise NotBuilt(f"{source} is newer than its object: run `make build` first")

    def compile(self, source: Path, copy: Path) -> list[str]:
        """How `source` of the copy is compiled into the copy's folder objects."""
        command = self.commands[source].replace(str(self.folder), str(copy / "objects"))
        command = command.replace(str(ROOT / "csrc"), str(copy / "csrc"))
        (copy / "objects" / source).parent.mkdir(parents=True, exist_ok=True)
        return ["/bin/sh", "-c", command]

    def link(self, copy: Path, anew: list[Path]) -> list[str]:
        """How the copy's extension is linked. What was compiled anew comes first: of an inline
        function that several objects hold the linker keeps the first."""
        made = [copy / "objects" / self.objects[source].relative_to(self.folder) for source in anew]
        kept = [path for source, path in self.objects.items() if source not in anew]
        libraries = ["c10", "torch", "torch_cpu", "torch_python"]
        folders = [Path(torch.__file__).parent / "lib"]
        if self.cuda:
            from torch.utils.cpp_extension import CUDA_HOME  # it warns where there is no GPU

            libraries += ["cudart", "c10_cuda", "torch_cuda"]
            folders += [Path(CUDA_HOME or "/usr/local/cuda") / "lib64"]
        command = ["c++", "-shared", "-fopenmp", *map(str, [*made, *kept])]
        command += [f"-L{folder}" for folder in folders] + [f"-l{name}" for name in libraries]
        return [*command, "-o", str(copy / "gvr_topk" / self.library.name)]

    def describe(self, copy: Path) -> None:
        shutil.copy2(ROOT / "gvr_topk" / "_build.json", copy / "gvr_topk" / "_build.json")
