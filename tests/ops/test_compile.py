# SPDX-License-Identifier: Apache-2.0
"""A decoder with gvr_topk.nn.TopK under torch.compile and in CUDA graphs made by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoder import Decoder, scores_of
from oracle import assert_exact, exact_answer
from torch import Tensor
from torch._dynamo.utils import counters

from gvr_topk.nn import TopK

STEPS = 64
WIDTH = 16
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _inputs(step: int, device: str, length: int = 192) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, slots and lengths of a step: one request per slot, one of them padding."""
    generator = torch.Generator().manual_seed(step)
    hidden = torch.randint(-3, 4, (3, WIDTH), generator=generator).float()
    slots = torch.tensor([[2, 0, -1], [0, 2, 3], [-1, 3, 1]][step // 8 % 3])
    first = torch.tensor([[40, 5, 1], [60, 1, 90], [1, 100, 20]][step // 8 % 3])
    lengths = (first + step).clamp(max=length).masked_fill(slots < 0, 0)
    return hidden.to(device), slots.to(device), lengths.to(device)


def _check_steps(stepped: Any, plain: Decoder, compiled: Decoder, device: str) -> None:
    """`stepped` and the eager twin give the same hidden states, sets and table at every step."""
    for step in range(STEPS):
        hidden, slots, lengths = _inputs(step, device, plain.length)
        expected, sets = plain(hidden, slots, lengths)
        got, ours = stepped(hidden, slots, lengths)
        answer = exact_answer(scores_of(plain, hidden, slots, 0), plain.k, lengths=lengths)
        assert_exact(answer, sets[0], label=f"eager, step {step}")
        assert torch.equal(ours.sort(-1).values, sets.sort(-1).values), f"step {step}"
        assert torch.equal(got, expected), f"step {step}"
        words = [0, 3]  # hints held, accepted draft
        assert torch.equal(compiled.select.state[..., words], plain.select.state[..., words])


class _CountingBackend:
    """Compiles as another backend does and counts how often it was asked."""

    def __init__(self, inner: str) -> None:
        self.inner = torch._dynamo.lookup_backend(inner)
        self.compilations = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.compilations += 1
        return self.inner(graph, inputs)


@torch.no_grad()
def test_a_decoder_compiles_once_without_graph_breaks(device: str) -> None:
    # Inductor's C++ takes a minute to compile; tests/cpp/exported.cpp covers it on the CPU.
    plain = Decoder(device=device)
    twin = copy.deepcopy(plain)
    counter = _CountingBackend("inductor" if device == "cuda" else "aot_eager")
    stepped = torch.compile(twin, fullgraph=True, dynamic=False, backend=counter)
    _check_steps(stepped, plain, twin, device)
    assert counter.compilations == 1
    assert not counters["graph_break"]


@torch.no_grad()
def test_growing_scores_compile_once(device: str) -> None:
    """Rows that get longer with every step, as with a cache that grows by concatenation."""
    module, plain = (TopK(24, slots=2, device=device) for _ in range(2))
    counter = _CountingBackend("aot_eager")
    stepped = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for step in range(STEPS):
        scores = torch.randn(2, 100 + step, device=device)
        assert_exact(exact_answer(scores, 24), stepped(scores), label=f"step {step}")
        plain(scores)
        assert torch.equal(module.state[..., [0, 3]], plain.state[..., [0, 3]])
    assert counter.compilations == 1


@torch.no_grad()
def test_speculative_steps_compile_with_their_commit_outside(device: str) -> None:
    module = TopK(8, slots=3, depth=4, device=device)
    stepped = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
    slots = torch.tensor([2, 0], device=device)
    for step in range(4):
        scores = torch.randn(8, 60, device=device)
        lengths = torch.tensor([40 + step, 3], device=device)
        indices = stepped(scores, slots, lengths, next_n=4)
        assert_exact(exact_answer(scores, 8, lengths=lengths, next_n=4), indices)
        module.cache.commit(slots, torch.tensor([step % 4, 0], device=device))
        assert module.state[0, 2, 0, 3].item() == step % 4


@needs_gpu
@torch.no_grad()
def test_reduce_overhead_skips_no_cuda_graph(caplog: pytest.LogCaptureFixture) -> None:
    plain = Decoder(device="cuda", slots=8, length=4096, k=512)
    twin = copy.deepcopy(plain)
    stepped = torch.compile(twin, fullgraph=True, dynamic=False, mode="reduce-overhead")
    with caplog.at_level("WARNING", logger="torch"):
        _check_steps(stepped, plain, twin, "cuda")
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert not [r.message for r in caplog.records if "skipping cudagraphs" in r.message]


@needs_gpu
@torch.no_grad()
def test_a_captured_step_of_all_layers_replays_with_other_data() -> None:
    """CUDA graphs by hand: static inputs, lengths and slots that change, padding with slot -1."""
    plain = Decoder(device="cuda", layers=4, slots=8, length=4096, k=512)
    twin = copy.deepcopy(plain)
    hidden, slots, lengths = (tensor.clone() for tensor in _inputs(0, "cuda", plain.length))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        twin(hidden, slots, lengths)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = twin(hidden, slots, lengths)
    twin.keys.zero_()
    twin.select.cache.reset()

    def replay(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        for static, given in zip((hidden, slots, lengths), inputs, strict=True):
            static.copy_(given)
        graph.replay()
        return outputs

    _check_steps(replay, plain, twin, "cuda")


@torch.no_grad()
def test_padded_rows_of_a_step_touch_nothing(device: str) -> None:
    decoder = Decoder(device=device)
    hidden, _, lengths = _inputs(0, device)
    before = decoder.select.state.clone()
    padding = torch.full((3,), -1, device=device)
    _, indices = decoder(hidden, padding, torch.zeros_like(lengths))
    assert bool((indices == -1).all())
    assert torch.equal(decoder.select.state, before)
