# SPDX-License-Identifier: Apache-2.0
"""The reasons given for a plan are true of the rule that made it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gvr_topk._C import make_plan
from gvr_topk.plan import Device, Plan, plan
from gvr_topk.testing import tuning

A100 = Device("NVIDIA A100", 108, 80, 163 * 1024, 1)


def reason(found: Plan, word: str) -> str:
    [line] = [line for line in found.reasons if word in line]
    return line


def test_the_plan_is_that_of_the_library() -> None:
    for rows, n, k, hinted in product(
        (1, 16, 512), (4096, 65536, 2**20), (64, 2048), (True, False)
    ):
        found = plan(rows, n, k, has_hint=hinted)
        made = make_plan(rows, n, k, has_hint=hinted)
        assert found.family == made["family"] and found.ctas_per_row == made["ctas_per_row"]
        assert found.use_hint == made["use_hint"] and found.staging == made["staging"]
        assert len(found.reasons) == (3 if hinted else 2)


def test_a_limit_is_named_exactly_where_lifting_it_gives_more_ctas() -> None:
    for rows, n in product((1, 2, 16, 64, 200), (1024, 8192, 65536, 2**20)):
        found = plan(rows, n, 512)
        line = reason(found, "per row: ")
        alone = plan(1, n, 512).ctas_per_row > found.ctas_per_row
        longer = plan(rows, 2**31 - 1, 512).ctas_per_row > found.ctas_per_row
        both = plan(1, 2**31 - 1, 512).ctas_per_row > found.ctas_per_row
        assert (f"{rows} rows share" in line) == (alone or (both and not longer))
        assert ("slices" in line) == (longer or (both and not alone))
        assert ("widest cluster" in line) == (not both)


def test_family_and_hint_are_explained() -> None:
    assert "asked for by name" in reason(plan(1, 9000, 9, algorithm="gvr"), "gvr: ")
    assert "too large for the staging memory" in reason(plan(1, 2**20, 20_000), "radix: ")
    radix = plan(1, 9000, 9, algorithm="radix", has_hint=True)
    assert not radix.use_hint and "takes none" in reason(radix, "hint ")
    stream = plan(1, 9000, 9, algorithm="stream", has_hint=True)
    assert stream.use_hint and "always" in reason(stream, "hint used")
    assert "no thread block clusters" in reason(plan(1, 2**20, 9, device=A100), "per row")
    assert "stays in the shared memory" in reason(plan(1, 65536, 2048), "resident: ")
    assert "512 rows do not all stay" in reason(plan(512, 65536, 2048), "stream: ")
    assert "a row of 1048576 scores" in reason(plan(1, 2**20, 2048), "stream: ")
    assert "does not fit" in reason(plan(1, 2**20, 2048, algorithm="resident"), "stream: ")


def test_overrides_are_said_to_be_overrides() -> None:
    with tuning(ctas_per_row=4, ignore_hint=1):
        found = plan(1, 65536, 64, has_hint=True)
    assert found.ctas_per_row == 4 and "overridden" in reason(found, "per row")
    assert "overridden" in reason(found, "hint not used")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_this_gpu_is_described() -> None:
    found = Device.of("cuda")
    assert found.sm_count > 0 and found.capability >= 80 and found.max_cluster in (1, 8, 16)
    assert plan(1, 65536, 64, device=found).ctas_per_row <= found.max_cluster
