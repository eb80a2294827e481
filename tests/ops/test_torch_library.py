# SPDX-License-Identifier: Apache-2.0
"""Citizens of torch.library: opcheck, fakes, autograd, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor
from torch.library import opcheck

import gvr_topk

ops = torch.ops.gvr
N, K = 120, 16


def _scores(device: str, dtype: torch.dtype = torch.float32, rows: int = 4) -> Tensor:
    return make_rows("quantised_4097", rows, N, K, device=device, dtype=dtype)


def _arguments(device: str, with_hint: bool) -> dict[str, Any]:
    if not with_hint:
        return {}
    return {
        "hint": make_hint("exact", _scores(device), K),
        "lengths": torch.tensor([N, 40], device=device),
        "starts": torch.tensor([0, 3], dtype=torch.int32, device=device),
        "next_n": 2,
        "compress_ratio": 1,
        "hint_offset": 1,
        "sorted": True,
        "algorithm": "gvr",
    }


@pytest.mark.parametrize("with_hint", [False, True], ids=["plain", "hinted"])
@pytest.mark.parametrize("name", ["topk", "topk_indices", "topk_stats"])
def test_opcheck_of_functional_operators(
    name: str, with_hint: bool, device: str, dtype: torch.dtype
) -> None:
    op = getattr(ops, name).default
    opcheck(op, (_scores(device, dtype), K), _arguments(device, with_hint))


@pytest.mark.parametrize("with_hint", [False, True], ids=["plain", "hinted"])
@pytest.mark.parametrize("name", ["topk", "topk_indices"])
def test_opcheck_of_out_operators(name: str, with_hint: bool, device: str) -> None:
    arguments = _arguments(device, with_hint)
    arguments["indices"] = torch.empty(4, K, dtype=torch.int32, device=device)
    if name == "topk":
        arguments["values"] = torch.empty(4, K, device=device)
    opcheck(getattr(ops, name).out, (_scores(device), K), arguments)


@pytest.mark.parametrize("with_hint", [False, True], ids=["plain", "hinted"])
@pytest.mark.parametrize("name", ["step", "step_values", "step_stats"])
def test_opcheck_of_stateful_operators(name: str, with_hint: bool, device: str) -> None:
    state = torch.zeros(2, 5, 2, 4 + K, dtype=torch.int32, device=device)
    arguments = _arguments(device, with_hint)
    if arguments.pop("hint", None) is not None:
        arguments["slots"] = torch.tensor([4, 1], device=device)
    opcheck(getattr(ops, name).default, (_scores(device), state, 1, K), arguments)


def test_opcheck_of_values_that_require_grad(device: str) -> None:
    for arguments in ({}, _arguments(device, True)):
        scores = _scores(device).requires_grad_()
        opcheck(ops.topk.default, (scores, K), arguments)


@pytest.mark.parametrize("shape", [(N,), (3, N), (2, 3, N), (0, N), (2, 0)])
def test_fakes_have_the_real_shapes(
    shape: tuple[int, ...], device: str, dtype: torch.dtype
) -> None:
    from torch._subclasses import FakeTensorMode

    scores = torch.zeros(shape, device=device, dtype=dtype)
    state = torch.zeros(1, 8, 1, 4 + K, device=device, dtype=torch.int32)
    with FakeTensorMode() as mode:
        fake = [
            *ops.topk(mode.from_tensor(scores), K),
            ops.topk_indices(mode.from_tensor(scores), K),
            *ops.topk_stats(mode.from_tensor(scores), K),
            *ops.step_stats(mode.from_tensor(scores), mode.from_tensor(state), 0, K),
        ]
    real = [
        *ops.topk(scores, K),
        ops.topk_indices(scores, K),
        *ops.topk_stats(scores, K),
        *ops.step_stats(scores, state, 0, K),
    ]
    for expected, given in zip(real, fake, strict=True):
        assert (given.shape, given.dtype, given.device) == (
            expected.shape,
            expected.dtype,
            expected.device,
        )
        assert given.stride() == expected.stride()


def test_operators_are_tagged_for_the_compiler() -> None:
    for name in ("topk", "topk_indices", "topk_stats", "step", "step_values", "step_stats"):
        packet = getattr(ops, name)
        for overload in packet.overloads():
            assert torch.Tag.pt2_compliant_tag in getattr(packet, overload).tags


@pytest.mark.parametrize("shape", [(5, N), (N,), (2, 3, N)])
def test_gradient_is_that_of_gather(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, algorithm: str
) -> None:
    rows = torch.Size(shape[:-1]).numel()
    scores = _scores(device, dtype, rows).reshape(shape).requires_grad_()
    values, indices = gvr_topk.topk(scores, K, algorithm=algorithm)
    assert not indices.requires_grad
    upstream = make_rows("normal", rows, K, K, device=device, dtype=dtype).reshape(values.shape)
    (gradient,) = torch.autograd.grad(values, scores, upstream)
    gathered = scores.gather(-1, indices.to(torch.int64))
    (expected,) = torch.autograd.grad(gathered, scores, upstream)
    assert torch.equal(gradient, expected)
    assert gradient.dtype == dtype


def test_padding_has_no_gradient(device: str) -> None:
    scores = _scores(device).requires_grad_()
    lengths = torch.tensor([N, 5, 0, -1], device=device)
    values, indices = gvr_topk.topk(scores, K, lengths=lengths)
    (gradient,) = torch.autograd.grad(values, scores, torch.ones_like(values))
    chosen = torch.zeros_like(gradient)
    for row in range(4):
        chosen[row, indices[row][indices[row] >= 0].to(torch.int64)] = 1.0
    assert torch.equal(gradient, chosen)


@pytest.mark.parametrize("shape", [(2, 0), (0, 0), (0, N)])
def test_rows_without_scores_have_an_empty_gradient(shape: tuple[int, ...], device: str) -> None:
    scores = torch.empty(shape, device=device).requires_grad_()
    values, _ = gvr_topk.topk(scores, K)
    (gradient,) = torch.autograd.grad(values.sum(), scores)
    assert gradient.shape == shape and bool((gradient == 0).all())


def test_gradient_passes_views_and_arithmetic(device: str) -> None:
    leaf = make_rows("normal", N, 3, K, device=device).requires_grad_()
    values = gvr_topk.topk(2 * leaf.T, K, sorted=True).values
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    answer = exact_answer(leaf.detach().T.contiguous(), K)
    expected = torch.zeros(3, N, device=device).scatter_(1, answer.indices, 2.0).T
    assert torch.equal(gradient, expected)


def test_topk_compiles_whole(device: str) -> None:
    def select(scores: Tensor, lengths: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = gvr_topk.topk(scores + 1.0, K, lengths=lengths, hint=hint)
        return values, indices * 1

    scores = make_rows("quantised_33", 3, N, K, device=device)
    lengths = torch.tensor([N, 30, 3], device=device)
    hint = make_hint("zeros", scores, K)
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(select, fullgraph=True, backend=backend)
    values, indices = compiled(scores, lengths, hint)
    assert_exact(exact_answer(scores + 1.0, K, lengths=lengths), indices, values)


def test_growing_rows_compile_once(device: str) -> None:
    compiled = torch.compile(
        lambda scores: gvr_topk.topk_indices(scores, K),
        fullgraph=True,
        dynamic=True,
        backend=(counter := _CountingBackend()),
    )
    for n in (40, 41, 77, 120):
        scores = make_rows("normal", 2, n, K, device=device)
        assert_exact(exact_answer(scores, K), compiled(scores))
    assert counter.compilations == 1


def test_step_in_a_compiled_region_advances_the_state(device: str) -> None:
    state = torch.zeros(1, 3, 1, 4 + K, dtype=torch.int32, device=device)
    compiled = torch.compile(
        lambda scores, state: ops.step(scores, state, 0, K), fullgraph=True, backend="aot_eager"
    )
    plain = state.clone()
    for seed in range(3):
        scores = make_rows("normal", 3, N, K, device=device, seed=seed)
        answer = exact_answer(scores, K)
        assert_exact(answer, compiled(scores, state))
        assert_exact(answer, ops.step(scores, plain, 0, K))
        assert torch.equal(state[..., :4], plain[..., :4])  # the header; hints have no order
        assert torch.equal(state[..., 4:].sort(-1).values, plain[..., 4:].sort(-1).values)


class _CountingBackend:
    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.compilations += 1
        return graph.forward
