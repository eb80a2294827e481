# SPDX-License-Identifier: Apache-2.0
"""Loads gvr_topk._C, once what it was built for has been compared with what is running."""

from __future__ import annotations

import json
import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("_build.json")
REBUILD = "Rebuild it for this environment: pip install --no-build-isolation ."
_NEEDED = ("torch", "cuda", "architectures", "python")


def build_info() -> dict[str, Any]:
    """What the extension was built with: torch, cuda (None: a CPU build), architectures, python.

    Raises ImportError when no extension has been built, or its record cannot be read.
    """
    if not RECORD.is_file():
        raise ImportError(f"gvr_topk: the extension is not built ({RECORD} is missing). {REBUILD}")
    try:
        build = json.loads(RECORD.read_text())
        return {key: build[key] for key in _NEEDED}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ImportError(f"gvr_topk: {RECORD} is damaged ({error}). {REBUILD}") from error


def mismatches(build: dict[str, Any]) -> list[str]:
    """Why an extension of this build cannot run here; empty when it can."""
    import torch

    found = []
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if build["python"] != python:
        found.append(f"it was built for Python {build['python']}, running is {python}")
    if _minor(build["torch"]) != _minor(torch.__version__):
        found.append(f"it was built for torch {build['torch']}, running is {torch.__version__}")
    if build["cuda"] is not None and build["cuda"] != torch.version.cuda:
        has = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        found.append(f"it was built for CUDA {build['cuda']}, this torch is {has}")
    return found


def cut_short(library: Path) -> str:
    """Says so where an ELF file ends before its section table: loading it kills the process."""
    size = library.stat().st_size
    with library.open("rb") as file:
        header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian; the loader names all else
        return ""
    if len(header) < 64:
        return f"{library.name} ends after {size} bytes"
    table = struct.unpack_from("<Q", header, 40)[0]
    entry, entries = struct.unpack_from("<HH", header, 58)
    needed = table + entry * entries
    return f"{library.name} ends after {size} of {needed} bytes" if size < needed else ""


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def load() -> None:
    """Import gvr_topk._C or raise one ImportError that says why not and what to do."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"gvr_topk: torch does not import ({error}). Install torch >= 2.11 in this Python, "
            "then build gvr_topk for it: pip install --no-build-isolation ."
        ) from error
    found = mismatches(build_info())
    if found:
        raise ImportError(f"gvr_topk: the extension does not fit: {'; '.join(found)}. {REBUILD}")
    library = Path(__file__).with_name("_C" + EXTENSION_SUFFIXES[0])
    if library.is_file() and (damage := cut_short(library)):
        raise ImportError(f"gvr_topk: the extension is damaged: {damage}. {REBUILD}")
    try:
        from gvr_topk import _C  # noqa: F401
    # RuntimeError: torch refuses a second library that registers the same operators.
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportError(f"gvr_topk: the extension does not load: {reason}. {REBUILD}") from error
