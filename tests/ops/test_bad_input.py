# SPDX-License-Identifier: Apache-2.0
"""A wrong call is a Python error that names the argument, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk

ops = torch.ops.gvr
SENTINEL = -7
ROWS, N, K, HINTS = 6, 50, 8, 8


class Call:
    """Good arguments of every operator; a case spoils one of them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.scores = torch.arange(float(ROWS * N), device=device).reshape(ROWS, N)
        self.values = torch.full((ROWS, K), float(SENTINEL), device=device)
        self.indices = self.integers(ROWS, K, fill=SENTINEL)
        self.state = self.integers(2, ROWS, 2, 4 + HINTS, fill=0)

    def integers(self, *shape: int, fill: int = 1, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full(shape, fill, dtype=dtype, device=self.device)

    def assert_nothing_written(self) -> None:
        assert bool((self.values == SENTINEL).all())
        assert bool((self.indices == SENTINEL).all())
        assert bool((self.state == 0).all())

    def out(self, scores: Any = None, k: int = K, **arguments: Any) -> None:
        arguments = {"values": self.values, "indices": self.indices, **arguments}
        ops.topk.out(self.scores if scores is None else scores, k, **arguments)

    def step(self, scores: Any = None, layer: int = 0, k: int = K, **arguments: Any) -> None:
        arguments = {"state": self.state, **arguments}
        ops.step(self.scores if scores is None else scores, layer=layer, k=k, **arguments)


Spoil = Callable[[Call], object]

# Argument -> what the message has to say beside its name, and the calls that must fail.
SHARED: list[tuple[str, type[Exception], str, str, Callable[[Call], dict[str, Any]]]] = [
    ("scores", TypeError, "Double", "float32", lambda c: {"scores": c.scores.double()}),
    ("scores", TypeError, "Int", "float32", lambda c: {"scores": c.integers(ROWS, N)}),
    ("scores", ValueError, "0-dim", "[..., n]", lambda c: {"scores": c.scores[0, 0]}),
    ("scores", ValueError, "2147483648", "2^31",
     lambda c: {"scores": c.scores[0, :1].expand(ROWS, 2**31)}),
    ("k", ValueError, "0", "1 <= k", lambda c: {"k": 0}),
    ("k", ValueError, "-3", "1 <= k", lambda c: {"k": -3}),
    ("k", ValueError, "2147483648", "2^31", lambda c: {"k": 2**31}),
    ("k", ValueError, "2147483647", "rows",
     lambda c: {"k": 2**31 - 1, "scores": c.scores[0, :1].expand(2**31, 1)}),
    ("next_n", ValueError, "0", "at least 1", lambda c: {"next_n": 0}),
    ("next_n", ValueError, "4", "divisor", lambda c: {"next_n": 4}),
    ("compress_ratio", ValueError, "0", "at least 1", lambda c: {"compress_ratio": 0}),
    ("compress_ratio", ValueError, "-2", "at least 1", lambda c: {"compress_ratio": -2}),
    ("hint_offset", ValueError, "2147483648", "32-bit", lambda c: {"hint_offset": 2**31}),
    ("algorithm", ValueError, "quick", "auto", lambda c: {"algorithm": "quick"}),
    ("lengths", TypeError, "Float", "int32", lambda c: {"lengths": torch.ones(ROWS).to(c.device)}),
    ("lengths", ValueError, "[5]", "[6]", lambda c: {"lengths": c.integers(5)}),
    ("lengths", ValueError, "[6, 1]", "[6]", lambda c: {"lengths": c.integers(ROWS, 1)}),
    ("lengths", ValueError, "[6]", "[3]", lambda c: {"lengths": c.integers(ROWS), "next_n": 2}),
    ("starts", TypeError, "Short", "int64",
     lambda c: {"starts": c.integers(ROWS, dtype=torch.int16)}),
    ("starts", ValueError, "[7]", "[6]", lambda c: {"starts": c.integers(7)}),
]  # fmt: skip

STATELESS: list[tuple[str, type[Exception], str, str, Callable[[Call], dict[str, Any]]]] = [
    ("hint", TypeError, "Long", "int32",
     lambda c: {"hint": c.integers(ROWS, K, dtype=torch.int64)}),
    ("hint", ValueError, "1", "dimensions", lambda c: {"hint": c.integers(K)}),
    ("hint", ValueError, "3", "dimensions", lambda c: {"hint": c.integers(1, ROWS, K)}),
    ("hint", ValueError, "5", "6", lambda c: {"hint": c.integers(5, K)}),
    ("hint", ValueError, "2", "6", lambda c: {"hint": c.integers(2, K), "next_n": 2}),
    ("hint", ValueError, "2147483648", "2^31",
     lambda c: {"hint": c.integers(1, 1).expand(ROWS, 2**31)}),
    ("values", TypeError, "Half", "Float", lambda c: {"values": c.values.half()}),
    ("values", ValueError, "[6, 7]", "[6, 8]", lambda c: {"values": c.values[:, :7]}),
    ("values", ValueError, "[5, 8]", "[6, 8]", lambda c: {"values": c.values[:5]}),
    ("values", ValueError, "strides", "dense",
     lambda c: {"values": c.values.T.contiguous().T}),
    ("indices", TypeError, "Long", "Int", lambda c: {"indices": c.indices.long()}),
    ("indices", ValueError, "[48]", "[6, 8]", lambda c: {"indices": c.indices.flatten()}),
    ("indices", ValueError, "strides", "dense",
     lambda c: {"indices": c.indices.T.contiguous().T}),
    ("indices", ValueError, "overlap", "own memory",
     lambda c: {"indices": c.indices[:1].expand(ROWS, K)}),
    ("values", ValueError, "overlap", "scores",
     lambda c: {"values": c.scores[:, :K]}),
    ("indices", ValueError, "overlap", "hint", lambda c: {"hint": c.indices}),
    ("indices", ValueError, "overlap", "values",
     lambda c: {"indices": c.values.view(torch.int32)}),
    ("indices", ValueError, "overlap", "lengths",
     lambda c: {"lengths": c.indices.flatten()[:ROWS]}),
]  # fmt: skip

STATEFUL: list[tuple[str, type[Exception], str, str, Callable[[Call], dict[str, Any]]]] = [
    ("state", TypeError, "Long", "int32", lambda c: {"state": c.state.long()}),
    ("state", ValueError, "[6, 2, 12]", "layers", lambda c: {"state": c.state[0]}),
    ("state", ValueError, "[2, 6, 2, 4]", "hint_size",
     lambda c: {"state": c.integers(2, ROWS, 2, 4, fill=0)}),
    ("state", ValueError, "strides", "contiguous",
     lambda c: {"state": c.state.transpose(1, 2).contiguous().transpose(1, 2)}),
    ("layer", IndexError, "2", "< 2", lambda c: {"layer": 2}),
    ("layer", IndexError, "-1", "0 <=", lambda c: {"layer": -1}),
    ("next_n", ValueError, "3", "depth", lambda c: {"next_n": 3}),
    ("slots", ValueError, "None", "5", lambda c: {"state": c.integers(2, 5, 2, 12, fill=0)}),
    ("slots", ValueError, "[5]", "[6]", lambda c: {"slots": c.integers(5)}),
    ("slots", TypeError, "Float", "int32", lambda c: {"slots": torch.ones(ROWS).to(c.device)}),
]  # fmt: skip


def _ids(cases: list[Any]) -> list[str]:
    return [f"{case[0]}-{case[2]}" for case in cases]


def _assert_raises(call: Call, act: Callable[[], object], case: Any) -> None:
    argument, error, given, needed, _ = case
    with pytest.raises(error) as raised:
        act()
    message = str(raised.value)
    assert type(raised.value) is error, f"{type(raised.value).__name__}: {message}"
    assert message.startswith(f"{argument}: "), message
    assert given in message and needed in message, message
    call.assert_nothing_written()


@pytest.mark.parametrize("case", SHARED, ids=_ids(SHARED))
def test_every_selection_names_the_argument(case: Any, device: str) -> None:
    call = Call(device)
    spoiled = case[4](call)
    _assert_raises(call, lambda: call.out(**spoiled), case)
    _assert_raises(call, lambda: call.step(**spoiled), case)
    scores, k = spoiled.pop("scores", call.scores), spoiled.pop("k", K)
    for op in (ops.topk, ops.topk_indices, ops.topk_stats):
        _assert_raises(call, lambda op=op: op(scores, k, **spoiled), case)
    for function in (gvr_topk.topk, gvr_topk.topk_indices, gvr_topk.explain):
        _assert_raises(call, lambda function=function: function(scores, k, **spoiled), case)


@pytest.mark.parametrize("case", STATELESS, ids=_ids(STATELESS))
def test_hints_and_outputs_are_named(case: Any, device: str) -> None:
    call = Call(device)
    spoiled = case[4](call)
    before = {name: value.clone() for name, value in spoiled.items() if isinstance(value, Tensor)
              and value.numel() < 10_000}  # fmt: skip
    _assert_raises(call, lambda: call.out(**spoiled), case)
    assert all(torch.equal(spoiled[name], value) for name, value in before.items())


@pytest.mark.parametrize("case", STATEFUL, ids=_ids(STATEFUL))
def test_state_and_slots_are_named(case: Any, device: str) -> None:
    call = Call(device)
    spoiled = case[4](call)
    _assert_raises(call, lambda: call.step(**spoiled), case)


@pytest.mark.parametrize("name", ["topk.out", "topk_stats", "step_values", "step_stats"])
def test_a_gradient_that_would_be_lost_is_an_error(name: str, device: str) -> None:
    call = Call(device)
    scores = call.scores.clone().requires_grad_()
    act = {
        "topk.out": lambda: call.out(scores),
        "topk_stats": lambda: ops.topk_stats(scores, K),
        "step_values": lambda: ops.step_values(scores, call.state, 0, K),
        "step_stats": lambda: ops.step_stats(scores, call.state, 0, K),
    }[name]
    _assert_raises(call, act, ("scores", ValueError, name, "detach", None))
    with torch.no_grad():
        act()


def test_indices_of_scores_that_require_grad_are_allowed(device: str) -> None:
    call = Call(device)
    scores = call.scores.clone().requires_grad_()
    answer = exact_answer(call.scores, K)
    assert_exact(answer, ops.topk_indices(scores, K))
    assert_exact(answer, ops.step(scores, call.state, 0, K))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_two_devices_are_named() -> None:
    for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
        for argument in ("lengths", "starts", "hint", "values", "indices"):
            call = Call(device)
            tensor = {
                "lengths": call.integers(ROWS),
                "starts": call.integers(ROWS),
                "hint": call.integers(ROWS, K),
                "values": call.values,
                "indices": call.indices,
            }[argument].to(other)
            with pytest.raises(ValueError, match=f"{argument}: .*need .*device|scores: .*need one"):
                call.out(**{argument: tensor})
            call.assert_nothing_written()
            assert argument not in ("values", "indices") or bool((tensor == SENTINEL).all())


def test_bad_values_are_data() -> None:
    """Lengths, starts, hints and scores of any value give an answer, never an error."""
    scores = torch.full((4, N), float("nan"))
    wild = torch.tensor([-(2**63), 2**63 - 1, -1, 10**12])
    hint = torch.full((4, K), -(2**31), dtype=torch.int32)
    gvr_topk.topk(scores, K, lengths=wild, starts=wild, hint=hint)
