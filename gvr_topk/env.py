# SPDX-License-Identifier: Apache-2.0
"""Describes an installation, above all a broken one, with a remedy for every problem found."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ._version import __version__

PACKAGE = Path(__file__).resolve().parent
REINSTALL = "rebuild: pip install --no-build-isolation ."


def collect(*, import_time: bool = False) -> dict[str, Any]:
    """What is installed and what is wrong, as JSON-serializable data. Never raises for a problem.

    Keys: gvr_topk, python, platform, location, torch, toolkit, extension, gpus, problems, and
    import_seconds where it is asked for, which takes some seconds. Each problem says what was found
    and what to do.
    """
    problems: list[str] = []
    report: dict[str, Any] = {
        "gvr_topk": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "location": {"path": str(PACKAGE), "mib": round(installed_bytes(PACKAGE) / 2**20, 2)},
        "torch": _torch(problems),
        "toolkit": _toolkit(),
        "extension": None,
        "gpus": [],
        "problems": problems,
    }
    if report["torch"] is not None:
        report["extension"] = _extension(problems)
        report["gpus"] = _gpus(report["extension"], problems)
        _compare_toolkit(report, problems)
    if import_time:
        report["import_seconds"] = _import_seconds(problems)
    return report


def installed_bytes(folder: Path) -> int:
    """Size of the files of a package, without what Python or a user can make again."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


_IMPORTS = """
from time import perf_counter
times = [perf_counter()]
for name in ("torch", "gvr_topk"):
    __import__(name)
    times.append(perf_counter())
print(times[1] - times[0], times[2] - times[1])
"""


def _import_seconds(problems: list[str]) -> dict[str, float] | None:
    """How long `import torch` takes in a fresh process, and `import gvr_topk` after it."""
    command = [sys.executable, "-c", _IMPORTS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=True, env=environment
        )
        torch, package = map(float, done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        problems.append(f"the import time could not be measured ({error})")
        return None
    return {"torch": round(torch, 3), "gvr_topk": round(package, 3)}


def render(report: dict[str, Any]) -> str:
    """The report as text, one fact per line."""
    torch, toolkit, extension = report["torch"], report["toolkit"], report["extension"]
    lines = [
        f"gvr_topk    {report['gvr_topk']}",
        f"python      {report['python']}",
        f"platform    {report['platform']}",
        f"installed   {report['location']['path']}, {report['location']['mib']} MiB",
        "torch       "
        + (f"{torch['version']}, CUDA {torch['cuda'] or 'none'}" if torch else "not importable"),
        "toolkit     "
        + (f"CUDA {toolkit['version']} ({toolkit['nvcc']})" if toolkit else "no nvcc found"),
    ]
    if extension is None:
        lines.append("extension   none")
    else:
        backend = (
            f"CUDA {extension['cuda']} for {extension['architectures']}"
            if extension["cuda"]
            else "CPU only"
        )
        state = "loaded" if extension["loaded"] else "does not load"
        lines.append(f"extension   {state}, built for torch {extension['torch']}, {backend}")
    if report.get("import_seconds"):
        seconds = report["import_seconds"]
        lines.append(f"import      {seconds['gvr_topk']} s after torch's {seconds['torch']} s")
    for gpu in report["gpus"]:
        lines.append(f"gpu {gpu['index']}       {gpu['name']}, sm_{gpu['capability']}")
    if not report["gpus"]:
        lines.append("gpu         none visible to torch")
    lines += [f"problem     {problem}" for problem in report["problems"]] or ["problems    none"]
    return "\n".join(lines)


def _torch(problems: list[str]) -> dict[str, Any] | None:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch does not import ({error}): install torch >= 2.11 in this Python")
        return None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        problems.append(f"torch is {torch.__version__}: install torch >= 2.11, then {REINSTALL}")
    return {"version": torch.__version__, "cuda": torch.version.cuda}


def _toolkit() -> dict[str, str] | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) or shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        text = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"release unknown: {error}"
    found = re.search(r"release (\d+\.\d+)", text)
    return {"nvcc": nvcc, "version": found.group(1) if found else "unknown"}


def _extension(problems: list[str]) -> dict[str, Any] | None:
    from ._extension import build_info, load

    info: dict[str, Any]
    try:
        info = build_info()
    except ImportError as error:
        problems.append(str(error))
        return None
    try:
        load()
        info["loaded"] = True
    except ImportError as error:
        problems.append(str(error))
        info["loaded"] = False
    spec = importlib.util.find_spec("gvr_topk._C") if info["loaded"] else None
    if spec is not None and spec.origin and not links_shared_libstdcxx(Path(spec.origin)):
        problems.append(
            f"{spec.origin} was linked with a static libstdc++ and crashes at the first error: "
            f"remove -static-libstdc++ from LDFLAGS, then {REINSTALL}"
        )
    return info


def links_shared_libstdcxx(library: Path) -> bool:
    """Whether an ELF library names libstdc++.so.6 among what it needs."""
    return b"\0libstdc++.so.6\0" in library.read_bytes()


def _gpus(extension: dict[str, Any] | None, problems: list[str]) -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        gpus.append(
            {
                "index": index,
                "name": torch.cuda.get_device_name(index),
                "capability": f"{major}{minor}",
            }
        )
        if extension is None or extension["architectures"] is None:
            continue
        if not runs_on(extension["architectures"], major, minor):
            problems.append(
                f"GPU {index} is sm_{major}{minor}, the extension was built for "
                f"{extension['architectures']}: set TORCH_CUDA_ARCH_LIST={major}.{minor}, "
                f"then {REINSTALL}"
            )
    if gpus and extension is not None and extension["cuda"] is None:
        problems.append(
            "there is a GPU, but the extension is a CPU build: install the CUDA toolkit that torch "
            f"was built for, set CUDA_HOME, then {REINSTALL} (with GVR_FORCE_CUDA=1)"
        )
    return gpus


def runs_on(architectures: str, major: int, minor: int) -> bool:
    """Whether code for an arch list such as "8.0;9.0+PTX" runs on compute capability major.minor.

    Binaries run on the same major version from their minor up, PTX on everything from it up.
    """
    for name in re.split(r"[;\s]+", architectures):
        found = re.match(r"(\d+)\.(\d+)([af]?)(\+PTX)?$", name)
        if found is None:
            continue
        built = (int(found[1]), int(found[2]))
        specific = found[3] == "a"
        if built == (major, minor):
            return True
        if not specific and built <= (major, minor) and (built[0] == major or found[4]):
            return True
    return False


def _compare_toolkit(report: dict[str, Any], problems: list[str]) -> None:
    cuda, toolkit = report["torch"]["cuda"], report["toolkit"]
    if cuda is None or toolkit is None or toolkit["version"] == "unknown":
        return
    if cuda.split(".")[0] != toolkit["version"].split(".")[0]:
        problems.append(
            f"nvcc is {toolkit['version']} ({toolkit['nvcc']}), torch was built for CUDA {cuda}: "
            f"set CUDA_HOME to a CUDA {cuda.split('.')[0]} toolkit, or build with GVR_CPU_ONLY=1"
        )
