# SPDX-License-Identifier: Apache-2.0
"""tools/build_wheels.sh asks cibuildwheel for the right torch, image and folder in every cell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "build_wheels.sh"
REPORT = """#!/bin/sh
echo "$*|$GVR_TORCH|$GVR_TORCH_INDEX|$CIBW_MANYLINUX_X86_64_IMAGE|$GVR_CPU_ONLY|$GVR_FORCE_CUDA"
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which python3 says how it was called."""
    python = tmp_path / "python3"
    python.write_text(REPORT)
    python.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def run(path: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def cells(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines() if "|" in line]


def test_cells_have_their_own_torch_image_and_folder(path: str) -> None:
    cpu, cuda = cells(run(path, "out", "cpu", "cu128", GVR_TORCH_VERSION="2.12.0"))
    assert cpu[0].endswith("--output-dir out/torch-2.12.0+cpu") and "--platform linux" in cpu[0]
    assert cpu[1:] == [
        "torch==2.12.0",
        "https://download.pytorch.org/whl/cpu",
        "manylinux_2_28",
        "1",
        "0",
    ]
    assert cuda[0].endswith("--output-dir out/torch-2.12.0+cu128")
    assert cuda[1:] == [
        "torch==2.12.0",
        "https://download.pytorch.org/whl/cu128",
        "pytorch/manylinux2_28-builder:cuda12.8",
        "0",
        "1",
    ]


def test_without_cells_the_usual_two_are_built(path: str) -> None:
    folders = [cell[0].rpartition("+")[2] for cell in cells(run(path, "out"))]
    assert folders == ["cpu", "cu130"]


def test_a_wrong_call_is_explained_and_builds_nothing(path: str) -> None:
    done = run(path)
    assert done.returncode == 2 and "tools/build_wheels.sh OUT" in done.stderr
    done = run(path, "out", "cuda13")
    assert done.returncode == 2 and "CELL: got cuda13, need cpu or cuXYZ" in done.stderr
    assert "|" not in done.stdout
