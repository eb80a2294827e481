# SPDX-License-Identifier: Apache-2.0
"""Loads gvr_topk._C, once what it was built for has been compared with what is running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

RECORD = Path(__file__).with_name("_build.json")
REBUILD = "Rebuild it for this environment: pip install --no-build-isolation ."


def build_info() -> dict[str, Any]:
    """What the extension was built with: torch, cuda (None: a CPU build), architectures, python.

    Raises ImportError when no extension has been built.
    """
    if not RECORD.is_file():
        raise ImportError(f"gvr_topk: the extension is not built ({RECORD} is missing). {REBUILD}")
    return json.loads(RECORD.read_text())


def mismatches(build: dict[str, Any]) -> list[str]:
    """Why an extension of this build cannot run here; empty when it can."""
    found = []
    if build["torch"].split(".")[:2] != torch.__version__.split(".")[:2]:
        found.append(f"it was built for torch {build['torch']}, running is {torch.__version__}")
    if build["cuda"] is not None and build["cuda"] != torch.version.cuda:
        found.append(
            f"it was built for CUDA {build['cuda']}, this torch is for CUDA {torch.version.cuda}"
        )
    return found


def load() -> None:
    """Import gvr_topk._C or raise one ImportError that says why not and what to do."""
    found = mismatches(build_info())
    if found:
        raise ImportError(f"gvr_topk: the extension does not fit: {'; '.join(found)}. {REBUILD}")
    try:
        from gvr_topk import _C  # noqa: F401
    except ImportError as error:
        raise ImportError(f"gvr_topk: the extension does not load: {error}. {REBUILD}") from error
