# SPDX-License-Identifier: Apache-2.0
"""The choice of kernel is one pure function of shape and device; no GPU is needed to ask it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from gvr_topk._C import get_tuning, make_plan, set_tuning
from gvr_topk.testing import tuning

H200 = {"sm_count": 132, "capability": 90, "shared_bytes_per_block": 227 * 1024, "max_cluster": 16}
A100 = {"sm_count": 108, "capability": 80, "shared_bytes_per_block": 163 * 1024, "max_cluster": 1}
RTX = {"sm_count": 36, "capability": 120, "shared_bytes_per_block": 99 * 1024, "max_cluster": 8}
DEVICES = [H200, A100, RTX]
ROWS = [1, 2, 7, 64, 131, 132, 133, 264, 265, 1024, 100_000, 2**40]
LENGTHS = [0, 1, 2047, 2048, 4096, 65_536, 131_072, 10**6, 2**31 - 1]
KS = [1, 512, 2048, 4096, 8192, 8193, 10**6, 2**30, 2**31 - 1]


def _is_power_of_two(x: int) -> bool:
    return x > 0 and x & (x - 1) == 0


@pytest.mark.parametrize("device", DEVICES, ids=["sm_90", "sm_80", "sm_120"])
@pytest.mark.parametrize("algorithm", ["auto", "gvr", "resident", "stream", "radix"])
def test_every_plan_can_be_launched(algorithm: str, device: dict[str, int]) -> None:
    for rows, n, k, has_hint in product(ROWS, LENGTHS, KS, (False, True)):
        plan = make_plan(rows, n, k, has_hint=has_hint, algorithm=algorithm, **device)
        label = f"{rows} x {n}, k {k}: {plan}"
        assert plan["family"] in ("gvr", "resident", "stream", "radix"), label
        assert _is_power_of_two(plan["ctas_per_row"]), label
        assert plan["ctas_per_row"] <= device["max_cluster"], label
        assert plan["bin_share"] == 1, label
        assert plan["chunk"] > 0 and plan["rank_capacity"] > 0 and plan["max_verify"] > 0, label
        assert plan["use_hint"] <= has_hint, label
        if plan["family"] == "radix":
            assert plan["ctas_per_row"] == 1, label
        else:
            assert plan["staging"] > k, label
            assert 8 * plan["staging"] < device["shared_bytes_per_block"], label
        if plan["family"] == "resident":
            assert plan["threads"] in (256, 512, 1024), label
            assert plan["slice"] * plan["ctas_per_row"] >= n, label
            assert plan["slice"] <= 32 * plan["threads"], label
            assert 4 * plan["slice"] < device["shared_bytes_per_block"], label
            assert not plan["use_hint"], label


@pytest.mark.parametrize("algorithm", ["gvr", "resident", "stream", "radix"])
def test_a_named_algorithm_is_obeyed_where_it_fits(algorithm: str) -> None:
    for k, device in product((1, 512, 2048), DEVICES):
        plan = make_plan(4, 12_000, k, algorithm=algorithm, **device)
        assert plan["family"] == algorithm


def test_auto_keeps_rows_resident_as_long_as_all_of_them_run_at_once() -> None:
    def family(rows: int, n: int, device: dict[str, int] = H200) -> str:
        return make_plan(rows, n, 2048, **device)["family"]

    for rows, n in ((1, 262_144), (16, 131_072), (64, 65_536), (132, 32_768), (100_000, 16_384)):
        assert family(rows, n) == "resident", (rows, n)
    for rows, n in ((1, 2**20), (65, 131_072), (133, 32_768), (100_000, 16_385)):
        assert family(rows, n) == "stream", (rows, n)
    assert family(1, 32_768, A100) == "resident"
    assert family(1, 32_769, A100) == "stream"  # no cluster shares the row
    assert family(1, 32_768, {**A100, "shared_bytes_per_block": 99 * 1024}) == "stream"


def test_a_k_beyond_the_staging_area_is_radix() -> None:
    for algorithm in ("auto", "gvr", "resident", "stream"):
        assert make_plan(1, 10**6, 100_000, algorithm=algorithm, **H200)["family"] == "radix"


def test_long_rows_of_small_batches_are_shared_by_ctas() -> None:
    assert make_plan(1, 131_072, 2048, **H200)["ctas_per_row"] > 1
    assert make_plan(1, 131_072, 2048, **A100)["ctas_per_row"] == 1
    assert make_plan(1024, 131_072, 2048, **H200)["ctas_per_row"] == 1
    by_rows = [make_plan(rows, 131_072, 2048, **H200)["ctas_per_row"] for rows in ROWS]
    assert by_rows == sorted(by_rows, reverse=True)


def test_the_choice_is_a_function_of_its_arguments() -> None:
    arguments: dict[str, Any] = {"dtype": torch.bfloat16, "has_hint": True, **H200}
    plans = [make_plan(16, 65_536, 2048, **arguments) for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert make_plan(16, 65_536, 2048, **{**arguments, "dtype": dtype})["staging"] > 2048


def test_overrides_are_obeyed_and_kept_launchable() -> None:
    for ctas in (1, 2, 4, 8, 16):
        with tuning(ctas_per_row=ctas):
            assert make_plan(1, 1500, 64, algorithm="gvr", **H200)["ctas_per_row"] == ctas
            assert make_plan(1, 1500, 64, algorithm="gvr", **A100)["ctas_per_row"] == 1
    with tuning(staging=1, chunk=64, bins=64, rank_capacity=3, max_verify=1, ignore_hint=1):
        plan = make_plan(1, 1500, 64, has_hint=True, algorithm="gvr", **H200)
    assert 64 < plan["staging"] < 128
    assert (plan["chunk"], plan["rank_capacity"], plan["max_verify"]) == (64, 3, 1)
    assert plan["bin_share"] == 0.25
    assert not plan["use_hint"] and not plan["force_undershoot"]


def test_tuning_is_restored_and_nests() -> None:
    before = get_tuning()
    assert not any(before.values())
    with tuning(chunk=64):
        with tuning(staging=7):
            assert get_tuning()["staging"] == 7
        assert get_tuning()["chunk"] == 64 and get_tuning()["staging"] == 0
        with pytest.raises(RuntimeError, match="inside"), tuning(chunk=1):
            raise RuntimeError("inside")
        assert get_tuning()["chunk"] == 64
    assert get_tuning() == before


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match="speed"):
        set_tuning(speed=9)
    with pytest.raises(ValueError, match='algorithm: got "fast", need "auto"'):
        make_plan(1, 10, 1, algorithm="fast")
    with pytest.raises(TypeError, match="dtype"):
        make_plan(1, 10, 1, dtype=torch.float64)
    assert not any(get_tuning().values())
