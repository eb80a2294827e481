# SPDX-License-Identifier: Apache-2.0
"""A small sparse-attention decoder with static shapes: what compile and CUDA-graph tests step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gvr_topk.nn


class Decoder(nn.Module):
    """`layers` attention layers over the k best of up to `length` cached keys, one row per slot.

    Everything that grows is data: keys are written at `lengths - 1` of their slot, a slot of -1 is
    padding and writes into a spare row. Hidden states, weights and so all scores are small whole
    numbers: sums are exact in any order, and every compiler's step has the same bits.
    """

    def __init__(
        self,
        *,
        layers: int = 2,
        slots: int = 4,
        length: int = 192,
        width: int = 16,
        k: int = 24,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.layers, self.slots, self.length, self.k = layers, slots, length, k
        self.project = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.select = gvr_topk.nn.TopK(k, slots, layers=layers, device=device)
        keys = torch.zeros(layers, slots + 1, length, width)
        self.register_buffer("keys", keys, persistent=False)
        self.to(device).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for project in self.project:
            weight = torch.randint(-1, 2, project.weight.shape, generator=generator)
            project.weight.copy_(weight)

    def forward(self, hidden: Tensor, slots: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden [batch, width], indices int32 [layers, batch, k]) of one decode step."""
        selected = []
        place = (lengths - 1).clamp(min=0).long()
        owner = torch.where(slots < 0, self.slots, slots).long()
        for layer, project in enumerate(self.project):
            query, key = project(hidden).chunk(2, dim=-1)
            self.keys[layer].index_put_((owner, place), key)
            keys = self.keys[layer][owner]
            scores = (keys @ query.unsqueeze(-1)).squeeze(-1)
            indices = self.select(scores, slots, lengths, layer=layer)
            selected.append(indices)
            chosen = indices.clamp(min=0).long().unsqueeze(-1).expand(-1, -1, keys.shape[-1])
            values = keys.gather(1, chosen).masked_fill((indices < 0).unsqueeze(-1), 0.0)
            hidden = torch.remainder(hidden + values.sum(1), 7.0) - 3.0
        return hidden, torch.stack(selected)


def scores_of(decoder: Decoder, hidden: Tensor, slots: Tensor, layer: int) -> Tensor:
    """The scores that `layer` selects from, recomputed outside the compiled step."""
    query, _ = decoder.project[layer](hidden).chunk(2, dim=-1)
    owner = torch.where(slots < 0, decoder.slots, slots).long()
    return (decoder.keys[layer][owner] @ query.unsqueeze(-1)).squeeze(-1)
