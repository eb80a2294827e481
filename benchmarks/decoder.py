# SPDX-License-Identifier: Apache-2.0
"""A sparse-attention decoder of DeepSeek-V3.2's layer shape with random weights, for decode.py.

Every layer has the lightning indexer (64 heads of 128), the selection, MLA attention in its
absorbed form over the selected keys, and the dense MLP of the model's first layers. Rotary
embeddings are left out, and weights and caches are bf16. As in a serving engine, what all layers of
a step share (where its tokens go in the caches) is computed once per step.

The hidden state that enters a layer is given, not computed by the layer before: an AR(1) process
over tokens, the same for every selection that is compared. Attention sums its keys in the order of
the selection, so with a chained state two exact selections would soon see different scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gvr_topk.bench.decoding import cell_label

# scores [rows, capacity], layer, lengths [requests] -> indices [rows, k]
Select = Callable[[Tensor, int, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer; the defaults are those of DeepSeek V3.2."""

    layers: int = 4
    hidden: int = 7168
    heads: int = 128
    query_rank: int = 1536
    key_rank: int = 512
    rope: int = 64
    nope: int = 128
    value: int = 128
    mlp: int = 18432
    index_heads: int = 64
    index_width: int = 128
    k: int = 2048


QUICK = Shape(2, 64, 4, 32, 32, 16, 16, 16, 96, 16, 32, 128)


@dataclass(frozen=True)
class Batch:
    """What is decoded: requests of `context` keys, 1 + drafts tokens of each in every step."""

    requests: int
    context: int
    drafts: int

    @property
    def next_n(self) -> int:
        return 1 + self.drafts

    @property
    def rows(self) -> int:
        return self.requests * self.next_n

    @property
    def label(self) -> str:
        return cell_label(self.requests, self.context, self.drafts)


def _weight(out: int, inputs: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    weight = torch.empty(out, inputs, device=generator.device, dtype=dtype)
    return weight.normal_(std=inputs**-0.5, generator=generator)


class Layer:
    """One layer's weights."""

    def __init__(self, shape: Shape, generator: torch.Generator, dtype: torch.dtype) -> None:
        def weight(out: int, inputs: int) -> Tensor:
            return _weight(out, inputs, generator, dtype)

        self.shape = s = shape
        self.q_a = weight(s.query_rank, s.hidden)
        # The softmax's scale is in the weights; engines have it in their attention kernel.
        self.q_b = weight(s.heads * (s.nope + s.rope), s.query_rank).mul_((s.nope + s.rope) ** -0.5)
        self.kv_a = weight(s.key_rank + s.rope, s.hidden)
        self.k_up = weight(s.heads * s.nope, s.key_rank).view(s.heads, s.nope, s.key_rank)
        self.v_up = weight(s.heads * s.value, s.key_rank).view(s.heads, s.value, s.key_rank)
        self.o = weight(s.hidden, s.heads * s.value)
        self.index_q = weight(s.index_heads * s.index_width, s.query_rank)
        self.index_k = weight(s.index_width, s.hidden)
        self.index_w = weight(s.index_heads, s.hidden)
        self.gate_up = weight(2 * s.mlp, s.hidden)
        self.down = weight(s.hidden, s.mlp)


class Caches:
    """Keys of one batch: [layers, requests, capacity, width], filled up to the context."""

    def __init__(
        self, shape: Shape, batch: Batch, steps: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        # A multiple of 64, so that every row of scores is aligned.
        self.capacity = -(-(batch.context + steps * batch.next_n) // 64) * 64
        lead = (shape.layers, batch.requests, self.capacity)
        device = generator.device
        self.latent = torch.empty(
            *lead, shape.key_rank + shape.rope, device=device, dtype=dtype
        ).normal_(generator=generator)
        self.index = torch.empty(*lead, shape.index_width, device=device, dtype=dtype).normal_(
            generator=generator
        )


def evolving_states(
    shape: Shape,
    batch: Batch,
    steps: int,
    correlation: float,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Tensor:
    """[steps, layers, rows, hidden]: of each request and layer an AR(1) process over its tokens."""
    size = (shape.layers, batch.requests, shape.hidden)
    device = generator.device
    state = torch.randn(size, generator=generator, device=device)
    states = []
    for _ in range(steps * batch.next_n):
        noise = torch.randn(size, generator=generator, device=device)
        state = correlation * state + (1 - correlation**2) ** 0.5 * noise
        states.append(state.to(dtype))
    tokens = torch.stack(states).view(steps, batch.next_n, *size)
    return tokens.permute(0, 2, 3, 1, 4).reshape(steps, shape.layers, batch.rows, shape.hidden)


class Decoder:
    """Weights, caches and inputs of one batch; `step` decodes its tokens with a given selection."""

    def __init__(
        self, shape: Shape, layers: list[Layer], batch: Batch, caches: Caches, states: Tensor
    ) -> None:
        self.shape, self.layers, self.batch = shape, layers, batch
        self.caches, self.states = caches, states
        device = states.device
        # Of every layer, so that a selection can be judged by the scores that it saw.
        self.scores = torch.empty(shape.layers, batch.rows, caches.capacity, device=device)
        self.request = torch.arange(batch.rows, device=device) // batch.next_n
        self.draft = torch.arange(batch.rows, device=device) % batch.next_n
        # Of each row, where its request's keys begin in a flat cache.
        self.first = (self.request * caches.capacity).unsqueeze(1)

    def step(self, time: Tensor, select: Select) -> tuple[Tensor, list[Tensor]]:
        """(hidden states [rows, hidden], indices of every layer) of step `time`, int64 [1].

        Everything that changes from step to step is read on the device: the call can be captured.
        """
        lengths = self.lengths(time)
        at = lengths[self.request] - self.batch.next_n + self.draft
        states = self.states.index_select(0, time)[0]
        total, selected = torch.zeros_like(states[0]), []
        for place in range(self.shape.layers):
            query_rank = self._write_and_score(place, states[place], at, lengths)
            indices = select(self.scores[place], place, lengths)
            selected.append(indices)
            attended = self._attend(place, query_rank, indices)
            total = total + self._mlp(place, states[place] + attended)
        return total, selected

    def lengths(self, time: Tensor) -> Tensor:
        """int64 [requests]: keys of each request once this step's tokens are in the cache."""
        end = self.batch.context + (time + 1) * self.batch.next_n
        return end.expand(self.batch.requests).contiguous()

    def _write_and_score(self, place: int, hidden: Tensor, at: Tensor, lengths: Tensor) -> Tensor:
        """Puts the new keys into the caches, at position `at` [rows] of their requests, and the
        layer's index scores into `scores[place]`.
        """
        layer, s, rows = self.layers[place], self.shape, self.batch.rows
        self.caches.latent[place].index_put_((self.request, at), F.linear(hidden, layer.kv_a))
        key = F.layer_norm(F.linear(hidden, layer.index_k), (s.index_width,))
        self.caches.index[place].index_put_((self.request, at), key)
        query_rank = F.rms_norm(F.linear(hidden, layer.q_a), (s.query_rank,))
        queries = F.linear(query_rank, layer.index_q).view(rows, s.index_heads, s.index_width)
        weights = F.linear(hidden, layer.index_w).float()
        _score(self.scores[place], queries, weights, self.caches.index[place], lengths)
        return query_rank

    def _attend(self, place: int, query_rank: Tensor, indices: Tensor) -> Tensor:
        """MLA over the selected keys, the up-projections absorbed into query and output."""
        layer, s, rows = self.layers[place], self.shape, self.batch.rows
        query = F.linear(query_rank, layer.q_b).view(rows, s.heads, s.nope + s.rope)
        nope, rope = query.split([s.nope, s.rope], dim=-1)
        absorbed = torch.bmm(nope.transpose(0, 1), layer.k_up).transpose(0, 1)
        query = torch.cat([absorbed, rope], dim=-1)
        flat = (indices + self.first).view(-1)
        latent = self.caches.latent[place].view(-1, s.key_rank + s.rope)
        keys = latent.index_select(0, flat).view(rows, s.k, s.key_rank + s.rope)
        weights = torch.bmm(query, keys.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights, keys[..., : s.key_rank])
        values = torch.bmm(mixed.transpose(0, 1), layer.v_up.transpose(1, 2)).transpose(0, 1)
        return F.linear(values.reshape(rows, s.heads * s.value), layer.o)

    def _mlp(self, place: int, hidden: Tensor) -> Tensor:
        layer = self.layers[place]
        gate, up = F.linear(F.rms_norm(hidden, hidden.shape[-1:]), layer.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, layer.down)


def _score(scores: Tensor, queries: Tensor, weights: Tensor, keys: Tensor, lengths: Tensor) -> None:
    if scores.is_cuda:
        from benchmarks.indexer_scores import score_into

        score_into(scores, queries, weights, keys, lengths)
    else:
        scores.copy_(plain_scores(queries, weights, keys, lengths))


def plain_scores(queries: Tensor, weights: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """fp32 [rows, capacity] in plain PyTorch; indexer_scores.py says what they are."""
    requests, capacity, width = keys.shape
    rows, heads, _ = queries.shape
    next_n = rows // requests
    grouped = queries.float().view(requests, next_n * heads, width)
    dots = torch.bmm(grouped, keys.float().transpose(1, 2)).relu_().view(rows, heads, capacity)
    scores = (dots * weights.unsqueeze(-1)).sum(1)
    row = torch.arange(rows, device=keys.device)
    ends = lengths[row // next_n] - next_n + row % next_n + 1
    column = torch.arange(capacity, device=keys.device)
    return scores.masked_fill(column >= ends.unsqueeze(1), -torch.inf)
