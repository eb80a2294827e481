# SPDX-License-Identifier: Apache-2.0
"""What a number depends on: the card, the versions, and the sources that were built."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from gvr_topk._version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]


def source_hash(root: Path = REPOSITORY) -> str | None:
    """sha256 over the names and bytes of csrc/**, in order of name; None outside a checkout."""
    files = sorted(path for path in (root / "csrc").rglob("*") if path.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe() -> dict[str, Any]:
    return {
        "date": now(),
        "gvr_topk": __version__,
        "source_sha256": source_hash(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        # Times of several threads mean little on a machine that others use.
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": _gpu(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_mib": properties.total_memory >> 20,
        "l2_mib": properties.L2_cache_size >> 20,
        "driver": _driver(),
    }


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None
