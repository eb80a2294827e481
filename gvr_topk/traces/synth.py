# SPDX-License-Identifier: Apache-2.0
"""Synthetic traces: rows like those of a DeepSeek-style sparse-attention indexer, with knobs.

Keys are a mean that all keys share, topics that last from a few tokens to a few thousand, an axis
on which every key has one of two signs, and noise. Queries are a mean per head, a share of the
current topic, and noise that is AR(1) over the steps; signed head weights likewise. Both get RoPE
(with YaRN's interpolation on request) on the first half of their dimensions and are rounded to
e4m3, and a score is the signed sum of ReLUs of the factored format.

Two mechanisms shape a row. Heads of positive weight whose mean query points where the mean key does
make a bump over the recent keys, by RoPE alone; heads of negative weight that meet the mean key in
the dimensions without RoPE push all keys down evenly. The rest is content. How strong each is says
a Character. ORDINARY and HARD were fitted to the recordings trace_A_layer6 and trace_B_layer5 by
random search (`gvr_topk.traces.calibration`) over row moments, overlap at K = 512 and 2048, share
of recent keys and boundary ties in bf16, at 8K to 128K keys. `gvr_topk/data/calibration.json` holds
the figures of all four, and notebook 01 draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .factored import Trace
from .rope import rope_frequencies, rotate

# Mean length (tokens) and share of a key's own energy of each level of topics. From the recordings'
# autocorrelation of keys: .41 and .20 at lag 1, .21 and .20 at 4, .12 and .10 at 16, .07 and .06 at
# 64, .04 and .04 at 256, .03 and .02 at 1,024, .02 and .01 at 4,096 (A and B).
_TOPICS = ((3, 0.25), (24, 0.10), (256, 0.05), (4096, 0.03))
_KEY_NORM = 6.8  # median of both recordings; the scores' scale is Character.scale
_E4M3_MAX = 448.0
_PAIRS_MEASURED = 8  # consecutive steps that an overlap is measured over
_HALVINGS = 10
_CHUNK = 65536


@dataclass(frozen=True)
class Character:
    """How the rows of one layer behave. Shares are of energy, 0 .. 1; alignments are -1 .. 1."""

    key_mean: float  # share of a key that all keys have in common
    key_axis: float  # share of the rest that lies on the axis of two signs
    key_content: float  # share of a key in the dimensions without RoPE
    query_content: float  # likewise for queries
    local_heads: float  # share of the positive heads that prefer recent keys
    locality: float  # their alignment with the mean key under RoPE, 0 .. 1
    reach: float  # keys over which that alignment fades
    reach_spread: float  # over how many natural logarithms of distance it fades
    content_near: float  # alignment of positive heads with the mean key without RoPE
    content_far: float  # alignment of negative heads likewise: pushes rows below zero
    repulsion: float  # alignment of negative heads against the mean key under RoPE
    weight_mean: float  # mean head weight, in standard deviations of the weights over heads
    query_change: float  # share of a query that changes over the steps
    weight_change: float  # share of the head weights that does
    persistence: float  # AR(1) coefficient of that change, per step
    topic: float  # share of that change that follows the current topic
    scale: float  # standard deviation of a row of 64K scores


# Printed by `python -m gvr_topk.traces.calibration fit`, which says how.
ORDINARY = Character(
    key_mean=0.728,
    key_axis=0.28,
    key_content=0.1815,
    query_content=0.4298,
    local_heads=0.6612,
    locality=0.795,
    reach=2564,
    reach_spread=1.345,
    content_near=-0.7333,
    content_far=0.409,
    repulsion=0.0977,
    weight_mean=-0.1372,
    query_change=0.2014,
    weight_change=0.2566,
    persistence=0.2867,
    topic=0.1384,
    scale=1.398,
)
HARD = Character(
    key_mean=0.726,
    key_axis=0.5,
    key_content=0.2498,
    query_content=0.414,
    local_heads=0.7518,
    locality=0.5167,
    reach=3350,
    reach_spread=1.514,
    content_near=-0.007847,
    content_far=0.8376,
    repulsion=0.006059,
    weight_mean=-0.4,
    query_change=0.4468,
    weight_change=0.04798,
    persistence=0.185,
    topic=0.02301,
    scale=2.106,
)
CHARACTERS = {"ordinary": ORDINARY, "hard": HARD}


@dataclass(frozen=True)
class SynthSpec:
    """What to make. The knobs that most tests want come first.

    overlap    mean share of a step's Top-k, over the whole context, that the step before had,
               0 .. 1. None: the character's own. Met by changing how much queries change from step
               to step; the nearest that can be had is taken (about k / keys at the low end), and
               what came out is in the trace's metadata.
    k          the K that `overlap` speaks of.
    zeros      share of keys, at random places, that score exactly 0 in every step: the plateau that
               ReLU makes. It holds the K-th place if the rest of the row is mostly below 0.
    ties       every score occurs this often, at neighbouring keys; so does the K-th.
    character  everything else about the rows; `dataclasses.replace(ORDINARY, locality=0.2)`.
    yarn_factor, original_context
               see `rope_frequencies`.
    seed       the same spec gives the same trace on the same machine and version of torch.
    """

    keys: int = 65536
    steps: int = 64
    overlap: float | None = None
    k: int = 2048
    zeros: float = 0.0
    ties: int = 1
    character: Character = field(default_factory=lambda: ORDINARY)
    heads: int = 32
    width: int = 64
    rope_base: float = 1e6
    yarn_factor: float = 1.0
    original_context: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "k", "ties", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, need at least 1")
        if self.keys < self.steps:
            raise ValueError(
                f"keys: got {self.keys}, need at least as many as steps ({self.steps})"
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width: got {self.width}, need a multiple of 4")
        for name, value in (("overlap", self.overlap), ("zeros", self.zeros)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value:g}, need 0 .. 1")
        if not 0 <= self.character.locality <= 1:
            raise ValueError(f"locality: got {self.character.locality:g}, need 0 .. 1")
        if self.overlap is not None and (self.steps < 2 or self.k > self.keys - self.steps):
            raise ValueError(
                f"overlap: needs at least 2 steps (got {self.steps}) and k ({self.k}) of at most "
                f"the keys of the first step ({self.keys - self.steps})"
            )


class _Keys(NamedTuple):
    vectors: Tensor  # [keys, width], before RoPE
    mean: Tensor  # [width], of unit length
    topics: Tensor  # [steps, width], of the last keys, of unit length


class _Noise(NamedTuple):
    """Standard normal, AR(1) over the steps."""

    queries: Tensor  # [steps, heads, width]
    weights: Tensor  # [steps, heads]


def synthesise(spec: SynthSpec) -> Trace:
    """A factored trace. 64K keys and 64 steps take about a second, ten with `overlap`."""
    generator = torch.Generator().manual_seed(spec.seed)
    frequencies = rope_frequencies(
        spec.width // 4,
        base=spec.rope_base,
        yarn_factor=spec.yarn_factor,
        original_context=spec.original_context,
    )
    keys = _make_keys(spec, frequencies, generator)
    means = _mean_queries(spec, keys.mean, generator)
    draws = _draws(spec, generator)
    key_tensors = _finish_keys(spec, rotate(keys.vectors, torch.arange(spec.keys), frequencies),
                               generator)  # fmt: skip

    def made(change: float) -> Trace:
        queries, weights = _queries(spec, keys, means, draws, change, frequencies)
        return Trace({**key_tensors, **_finish_queries(spec, queries, weights)}, {}, "synthetic")

    change = 1.0 if spec.overlap is None else _change_for(spec, spec.overlap, made)
    trace = made(change)
    # The scale is the row's own, so that the rounding to e4m3 comes first, as in a model.
    seen = trace.visible(0)
    deviation = approximate_scores(trace, [0])[0, max(seen - 65536, 0) : seen].std().item()
    trace.tensors["w"] *= spec.character.scale / deviation if deviation > 0 else 1.0
    about: dict[str, Any] = {**asdict(spec), "overlap_asked": spec.overlap, "change": change}
    about["overlap"] = _overlap(trace, spec.k) if spec.overlap is not None else None
    return Trace(trace.tensors, {"layer": "0", "synthetic": about}, "synthetic")


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-20)


def _profile(spec: SynthSpec, content: float) -> Tensor:
    """Standard deviation of each dimension of a vector of unit energy."""
    half = spec.width // 2
    return torch.tensor(
        [math.sqrt((1 - content) / half)] * half + [math.sqrt(content / half)] * half
    )


def _make_keys(spec: SynthSpec, frequencies: Tensor, generator: torch.Generator) -> _Keys:
    character, half = spec.character, spec.width // 2
    # The pairs whose wavelength is near `reach` carry the mean: their sum fades around there.
    distance = (-frequencies.log() - math.log(character.reach)) / character.reach_spread
    energy = torch.exp(-(distance**2) / 2)
    amplitude = ((1 - character.key_content) * energy / energy.sum()).sqrt().float()
    phase = 2 * math.pi * torch.rand(len(frequencies), generator=generator)
    content = _unit(torch.randn(half, generator=generator)) * math.sqrt(character.key_content)
    mean = torch.cat([amplitude * phase.cos(), amplitude * phase.sin(), content])

    profile = _profile(spec, character.key_content)
    axis = _unit(torch.randn(spec.width, generator=generator) * profile)
    topics, noise, sign = key_draws(spec.keys, spec.width, spec.seed)
    own = math.sqrt(character.key_axis) * sign * axis
    own = own + math.sqrt(1 - character.key_axis) * (topics + noise) * profile
    vectors = math.sqrt(character.key_mean) * mean + math.sqrt(1 - character.key_mean) * own
    recent = _unit(topics[spec.keys - spec.steps :] * profile)
    return _Keys(_KEY_NORM * _unit(vectors), mean, recent)


def key_draws(keys: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Topics [keys, width], noise [keys, width], signs [keys, 1]: no character's, only chance."""
    generator = torch.Generator().manual_seed(seed + 1)
    topics = torch.zeros(keys, width)
    for length, share in _TOPICS:
        begins = torch.rand(keys, generator=generator) < 1 / length
        segment = begins.long().cumsum(0)
        levels = torch.randn(int(segment[-1]) + 1, width, generator=generator)
        topics += math.sqrt(share) * levels[segment]
    noise = torch.randn(keys, width, generator=generator)
    noise *= math.sqrt(1 - sum(share for _, share in _TOPICS))
    return topics, noise, (torch.rand(keys, 1, generator=generator) < 0.5).float() * 2 - 1


def _mean_queries(
    spec: SynthSpec, key_mean: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean query [heads, width] and weight [heads] of every head."""
    character, half = spec.character, spec.width // 2
    # Quantiles, not draws: the balance of positive and negative heads is no accident of the seed.
    places = (torch.arange(spec.heads) + 0.5) / spec.heads
    order = torch.randperm(spec.heads, generator=generator)
    weights = torch.special.ndtri(places)[order] + character.weight_mean
    positive = (weights > 0).float()[:, None]
    local = (torch.randperm(spec.heads, generator=generator) + 0.5) / spec.heads
    near = positive * (local < character.local_heads).float()[:, None] * character.locality

    def aligned(target: Tensor, share: Tensor) -> Tensor:
        own = _unit(torch.randn(spec.heads, half, generator=generator))
        return _unit(share * _unit(target) + (1 - share.abs()) * own)

    rotary = aligned(key_mean[:half], near - (1 - positive) * character.repulsion)
    content = aligned(
        key_mean[half:],
        positive * character.content_near + (1 - positive) * character.content_far,
    )
    share = character.query_content
    return torch.cat([math.sqrt(1 - share) * rotary, math.sqrt(share) * content], 1), weights


def _draws(spec: SynthSpec, generator: torch.Generator) -> _Noise:
    """White noise: what persists from step to step depends on how much is to change."""
    return _Noise(
        torch.randn(spec.steps, spec.heads, spec.width, generator=generator),
        torch.randn(spec.steps, spec.heads, generator=generator),
    )


def _ar1(white: Tensor, coefficient: float) -> Tensor:
    made = white.clone()
    fresh = math.sqrt(1 - coefficient**2)
    for step in range(1, len(white)):
        made[step] = coefficient * made[step - 1] + fresh * white[step]
    return made


def _queries(
    spec: SynthSpec,
    keys: _Keys,
    means: tuple[Tensor, Tensor],
    draws: _Noise,
    change: float,
    frequencies: Tensor,
) -> tuple[Tensor, Tensor]:
    """Queries after RoPE and weights. change: 0 nothing moves, 1 as the character, 2 all is new."""
    character = spec.character
    less, more = min(change, 1.0), max(change - 1.0, 0.0)
    persistence = character.persistence * (1 - more)
    profile = _profile(spec, character.query_content)
    sign = means[1].sign()[:, None]
    moving = math.sqrt(1 - character.topic) * _ar1(draws.queries, persistence) * profile
    moving = moving + math.sqrt(character.topic) * keys.topics[:, None] * sign

    def mixed(mean: Tensor, part: Tensor, share: float) -> Tensor:
        share = less * share + more * (1 - share)
        return math.sqrt(1 - share) * mean + math.sqrt(share) * part

    queries = mixed(means[0], moving, character.query_change)
    spread = math.sqrt(1 + character.weight_mean**2)
    weights = mixed(means[1], spread * _ar1(draws.weights, persistence), character.weight_change)
    # Towards no change at all, positions stand still too: RoPE alone makes an answer move.
    moved = min(1.0, 10 * change) * torch.arange(spec.steps)
    return rotate(queries, (spec.keys - spec.steps + moved)[:, None], frequencies), weights


def _quantise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 bytes, scale of each vector), with the greatest element at the format's greatest."""
    scale = (vectors.abs().amax(-1) / _E4M3_MAX).clamp(min=1e-20)
    return (vectors / scale[..., None]).to(torch.float8_e4m3fn).view(torch.uint8), scale


def _finish_keys(spec: SynthSpec, rotated: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Rounded keys, with the plateau and the ties that were asked for."""
    if spec.zeros:
        # These keys lie opposite to the last dimension, in which every query is positive.
        rotated[:, -1] = 0
        plateau = torch.randperm(spec.keys, generator=generator)[: round(spec.zeros * spec.keys)]
        rotated[plateau] = 0
        rotated[plateau, -1] = -_KEY_NORM
    data, scale = _quantise(rotated)
    if spec.ties > 1:
        source = torch.arange(spec.keys) // spec.ties * spec.ties
        data, scale = data[source], scale[source]
    return {"k_fp8": data, "k_scale": scale}


def _finish_queries(spec: SynthSpec, queries: Tensor, weights: Tensor) -> dict[str, Tensor]:
    if spec.zeros:
        queries[..., -1] = 0.1 * queries.norm(dim=-1)
    data, scale = _quantise(queries)
    return {"q_fp8": data, "w": weights * scale}


def _change_for(spec: SynthSpec, overlap: float, made: Callable[[float], Trace]) -> float:
    """The change, 0 .. 2, whose overlap is nearest to the one asked for: it falls with change."""
    low, high = 0.0, 2.0
    tried: dict[float, float] = {}
    for change in (low, high):
        tried[change] = _overlap(made(change), spec.k)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried[middle] = _overlap(made(middle), spec.k)
        if tried[middle] > overlap:
            low = middle
        else:
            high = middle
    return min(tried, key=lambda change: abs(tried[change] - overlap))


def _overlap(trace: Trace, k: int) -> float:
    """Mean overlap of consecutive Top-k over some of the steps."""
    last = trace.steps - 1
    count = min(_PAIRS_MEASURED, last)
    firsts = sorted({round(i * (last - 1) / max(count - 1, 1)) for i in range(count)})
    # A stable sort: the lowest index wins a tie here too, or a plateau would look like change.
    rows = approximate_scores(trace, [step for first in firsts for step in (first, first + 1)])
    top = rows.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return sum(
        torch.isin(now, before).float().mean().item()
        for before, now in zip(top[::2], top[1::2], strict=True)
    ) / len(firsts)


def approximate_scores(trace: Trace, steps: Sequence[int]) -> Tensor:
    """fp32 [len(steps), keys] by matrix products: `trace.scores` up to rounding, much faster.

    Columns are keys, those that a step does not see -inf. For statistics of many rows; ties that
    hang on the last bits are not the recording's.
    """
    float8 = torch.float8_e4m3fn
    weights = trace.tensors["w"]
    scores = torch.empty(len(steps), trace.keys, device=trace.device)
    for begin in range(0, trace.keys, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        keys = trace.tensors["k_fp8"][part].view(float8).float().T
        for row, step in enumerate(steps):
            dots = trace.tensors["q_fp8"][step].view(float8).float() @ keys
            scores[row, part] = weights[step] @ dots.relu_()
    scores *= trace.tensors["k_scale"]
    for row, step in enumerate(steps):
        scores[row, trace.visible(step) :] = -torch.inf
    return scores
