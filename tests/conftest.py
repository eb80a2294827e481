# SPDX-License-Identifier: Apache-2.0
"""Every test that takes `device` runs on each device of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch loads OpenMP: idle threads that spin make thousands of small calls several times
# slower on a machine that is busy with something else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

from gvr_topk.testing import tuning

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("GVR_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["auto", "gvr", "resident", "stream", "radix"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _no_tuning_is_left_behind() -> Iterator[None]:
    with tuning():
        yield
