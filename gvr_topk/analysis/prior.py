# SPDX-License-Identifier: Apache-2.0
"""The Toeplitz view: how much of a row is its distance from the query, by RoPE, and nothing else.

A score that depended on the distance alone would make the matrix of scores (steps by keys) a
Toeplitz matrix. RoPE puts such a part there: with the mean query and the mean key of a head, taken
out of their rotation, <q, k> is a sum of cosines in the distance, one per rotary pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..traces import Row, Trace, TraceError, rotate
from ._frames import SEQUENCE, Counts, Source, about, counts, each_row, frame, tail, winners

if TYPE_CHECKING:
    import pandas

_BINS_PER_OCTAVE = 16
_CHUNK = 1024  # distances at a time: 16 MB for 32 heads of 64


def distance_profile(rows: Sequence[Row], n: int) -> Tensor:
    """Mean score by distance from the newest key, float64 [n]; place 0 is the newest.

    Distances are pooled in bins that widen with them, 16 per octave, so that the mean is one of
    many keys: what is left is position, not the keys that happened to be there.
    """
    total = torch.zeros(n, dtype=torch.float64)
    for row in rows:
        total += row.scores[-n:].flip(0).double().cpu()
    bins = _distance_bins(n)
    sums = torch.zeros(int(bins[-1]) + 1, dtype=torch.float64).index_add_(0, bins, total)
    return (sums / bins.bincount() / len(rows))[bins]


def _distance_bins(n: int) -> Tensor:
    """A number for each distance 0 .. n - 1, ascending without gaps."""
    octaves = (torch.arange(n, dtype=torch.float64) + 1).log2()
    _, bins = (octaves * _BINS_PER_OCTAVE).floor().unique(return_inverse=True)
    return bins


def mean_vectors(trace: Trace, frequencies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key [D], mean queries [heads, D] and covariance of keys [D, D], all before RoPE.

    frequencies  those that the trace was recorded with (`rope_frequencies`).

    Queries are weighted by |head weight|, as they count in the score. float64.
    """
    _check_width(trace, frequencies)
    keys = _decode(trace.tensors["k_fp8"]) * trace.tensors["k_scale"][:, None].double()
    keys = rotate(keys, -torch.arange(trace.keys, device=trace.device), frequencies)
    # Only differences of positions matter, so a cut may count from its own first key.
    places = trace.keys - trace.steps + torch.arange(trace.steps, device=trace.device)
    queries = rotate(_decode(trace.tensors["q_fp8"]), -places[:, None], frequencies)
    weight = trace.tensors["w"].double()
    query = (queries * weight.abs()[..., None]).sum(0) / weight.abs().sum(0)[:, None]
    return keys.mean(0), query, keys.T.cov()


def rope_profile(trace: Trace, frequencies: Tensor, n: int) -> Tensor:
    """The scores that position alone makes in theory, float64 [n] by distance; 0 is the newest.

    With the mean vectors of `mean_vectors`, head h meets a key at distance d with a mean of
    mu_h(d) = <q_h turned by d, k> and a spread s_h from the keys' covariance; a normal variable has
    E relu = mu * Phi(mu / s) + s * phi(mu / s). Summed with the mean head weights.
    """
    key, query, covariance = mean_vectors(trace, frequencies)
    weight = trace.tensors["w"].double().mean(0)
    spread = ((query @ covariance) * query).sum(1).sqrt()
    profile = torch.empty(n, dtype=torch.float64)
    for begin in range(0, n, _CHUNK):
        distance = torch.arange(begin, min(begin + _CHUNK, n), device=trace.device)
        turned = rotate(query[None], distance[:, None], frequencies)
        mean = turned @ key
        ratio = mean / spread
        density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
        relu = mean * torch.special.ndtr(ratio) + spread * density
        profile[begin : begin + len(distance)] = (relu @ weight).cpu()
    return profile


def rope_evidence(trace: Trace, bases: Sequence[float]) -> pandas.DataFrame:
    """How well each RoPE base fits a trace: the length of the mean key once its turns are undone.

    Wrong frequencies scatter the keys' phases and the mean of a pair vanishes; the right ones line
    them up. `coherence` is the share of the rotary energy that the mean of each pair keeps.

    Columns: base, coherence.
    """
    from ..traces import rope_frequencies

    records = []
    for base in bases:
        frequencies = rope_frequencies(trace.width // 4, base=base)
        half = trace.width // 2
        keys = _decode(trace.tensors["k_fp8"]) * trace.tensors["k_scale"][:, None].double()
        positions = torch.arange(trace.keys, device=trace.device)
        keys = rotate(keys, -positions, frequencies)[:, :half]
        coherence = keys.mean(0).square().sum() / keys.square().sum(1).mean()
        records.append({"base": base, "coherence": coherence.item()})
    return frame(records, ("base", "coherence"))


def position_prior(
    source: Source,
    k: Counts = 2048,
    n: Counts | None = None,
    *,
    frequencies: Tensor | None = None,
) -> pandas.DataFrame:
    """How much of each Top-K a predictor finds that knows positions alone.

    The first half of every sequence's steps is for learning, the second is predicted. Predictors:

    recent      the k most recent keys
    profile     the k best distances of `distance_profile` of the first half
    rope        the k best distances of `rope_profile`, if `frequencies` are given and the source is
                a factored trace: from mean vectors (of all steps), without having seen a score
    previous    the previous step's answer: what a hint knows, for comparison
    chance      k / n

    n None takes the greatest length that all rows of a sequence have. Memory: all rows. Columns:
    layer, request, draft, step, n, k, predictor, explained (share of the Top-K).
    """
    if frequencies is not None and not isinstance(source, Trace):
        raise TraceError("frequencies: only a factored trace has the vectors that they turn")
    lengths = None if n is None else counts("n", n)
    rows = sorted(each_row(source), key=lambda row: (row.sequence, row.step))
    records = []
    for _, group in groupby(rows, key=lambda row: row.sequence):
        sequence = list(group)
        for length in lengths or [min(len(row.scores) for row in sequence)]:
            parts = [part for row in sequence if (part := tail(row, length)) is not None]
            if len(parts) < 2:
                continue
            theory = None
            if isinstance(source, Trace) and frequencies is not None:
                theory = rope_profile(source, frequencies, length)
            for size in counts("k", k):
                if size < length:
                    records += _predictions(parts, size, length, theory)
    return frame(records, (*SEQUENCE, "n", "k", "predictor", "explained"))


def _predictions(
    parts: list[Row], k: int, length: int, theory: Tensor | None
) -> list[dict[str, Any]]:
    """Every predictor's share of the answers of the second half of one sequence's rows."""
    learned, predicted = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    distances = {"recent": torch.arange(k), "profile": _best(distance_profile(learned, length), k)}
    if theory is not None:
        distances["rope"] = _best(theory, k)
    previous = winners(learned[-1], k)
    records = []
    for row in predicted:
        now = winners(row, k)
        newest = row.first_key + length - 1
        found = {
            name: _share(now, (newest - distance).to(now.device))
            for name, distance in distances.items()
        }
        found |= {"previous": _share(now, previous), "chance": k / length}
        previous = now
        records += [
            {**about(row), "n": length, "k": k, "predictor": name, "explained": share}
            for name, share in found.items()
        ]
    return records


def variance_shares(source: Source, n: int) -> pandas.DataFrame:
    """What the scores of the last n keys vary with, by sequence, as shares of their variance.

    distance  the profile of mean scores by distance: the Toeplitz part
    key       beyond that, the mean over the steps of each key: what stays when time goes on
    step      the remainder, which changes from step to step

    Only keys that every step has in its window count. Columns: layer, request, draft, part, share.
    """
    rows = sorted(each_row(source), key=lambda row: (row.sequence, row.step))
    records = []
    for (layer, request, draft), group in groupby(rows, key=lambda row: row.sequence):
        sequence = list(group)
        parts = [part for row in sequence if (part := tail(row, n)) is not None]
        if len(parts) < 2:
            continue
        first = max(part.first_key for part in parts)
        last = min(part.first_key + n for part in parts)
        if last - first < 2:
            continue
        profile = distance_profile(parts, n)
        scores, by_distance = [], []
        for part in parts:
            window = slice(first - part.first_key, last - part.first_key)
            scores.append(part.scores[window].double().cpu())
            by_distance.append(profile.flip(0)[window])
        matrix, toeplitz = torch.stack(scores), torch.stack(by_distance)
        total = matrix.var(correction=0)
        rest = matrix - toeplitz
        of_key = rest.mean(0).var(correction=0) / total
        unexplained = rest.var(correction=0) / total
        shares = {"distance": 1 - unexplained, "key": of_key, "step": unexplained - of_key}
        records += [
            {
                "layer": layer,
                "request": request,
                "draft": draft,
                "part": name,
                "share": float(share),
            }
            for name, share in shares.items()
        ]
    return frame(records, ("layer", "request", "draft", "part", "share"))


def _best(profile: Tensor, k: int) -> Tensor:
    return profile.sort(descending=True, stable=True).indices[:k]


def _share(now: Tensor, predicted: Tensor) -> float:
    return torch.isin(now, predicted).float().mean().item()


def _decode(data: Tensor) -> Tensor:
    return data.view(torch.float8_e4m3fn).to(torch.float64)


def _check_width(trace: Trace, frequencies: Tensor) -> None:
    if not 0 < 2 * len(frequencies) <= trace.width:
        raise ValueError(
            f"frequencies: got {len(frequencies)}, need 1 .. {trace.width // 2}, one for each "
            f"rotary pair of vectors of {trace.width}"
        )
