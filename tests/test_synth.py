# SPDX-License-Identifier: Apache-2.0
"""Synthetic traces: every knob does what it says, and the characters resemble their recordings."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch

from gvr_topk.reference import topk_reference
from gvr_topk.traces import (
    HARD,
    ORDINARY,
    SynthSpec,
    Trace,
    cut,
    open_trace,
    rope_frequencies,
    rotate,
    save,
    synthesise,
)
from gvr_topk.traces.calibration import committed, distance, figures
from gvr_topk.traces.synth import CHARACTERS, approximate_scores


def small(**knobs) -> SynthSpec:
    return SynthSpec(**{"keys": 4096, "steps": 9, "k": 256, **knobs})


def exact_overlap(trace: Trace, k: int) -> float:
    """Mean overlap of consecutive exact answers."""
    answers = [topk_reference(trace.scores(step), k)[1] for step in range(trace.steps)]
    shares = [
        torch.isin(now, before).float().mean().item() for before, now in itertools.pairwise(answers)
    ]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
def test_the_overlap_that_is_asked_for_comes_out(overlap: float) -> None:
    trace = synthesise(small(overlap=overlap))
    assert abs(trace.metadata["synthetic"]["overlap"] - overlap) < 0.02
    # All 8 pairs are measured, so the metadata tells what the exact answers say.
    assert abs(exact_overlap(trace, 256) - trace.metadata["synthetic"]["overlap"]) < 0.005


def test_overlaps_of_0_and_1_are_approached_and_reported() -> None:
    least, greatest = (synthesise(small(overlap=o)).metadata["synthetic"] for o in (0.0, 1.0))
    chance = 256 / 4096
    assert least["overlap_asked"] == 0.0 and least["overlap"] < 3 * chance
    assert greatest["overlap_asked"] == 1.0 and greatest["overlap"] > 0.99


def test_zeros_make_a_plateau_of_exact_zeros() -> None:
    trace = synthesise(small(zeros=0.75))
    for step in range(trace.steps):
        scores = trace.scores(step)
        assert abs((scores == 0).float().mean().item() - 0.75) < 0.005
        # Without the knob there are none, so the plateau is the knob's alone.
        assert scores.unique().numel() > len(scores) // 5
    assert (synthesise(small()).scores(0) == 0).sum() == 0
    assert (synthesise(small(zeros=1.0)).scores(3) == 0).all()


@pytest.mark.parametrize("ties", [2, 50])
def test_every_score_occurs_as_often_as_asked(ties: int) -> None:
    trace = synthesise(small(ties=ties))
    scores = trace.scores(trace.steps - 1)
    _, times = scores.unique(return_counts=True)
    whole_groups = len(scores) // ties
    assert (times >= ties).sum() >= whole_groups - 1
    kth = scores.topk(256).values[-1]
    assert (scores == kth).sum() >= ties


def test_locality_brings_recent_keys_to_the_top() -> None:
    def recent(locality: float) -> float:
        trace = synthesise(small(keys=16384, character=replace(ORDINARY, locality=locality)))
        top = topk_reference(trace.scores(8), 256)[1]
        return (top >= 16384 - 1024).float().mean().item()

    none, some, most = recent(0.0), recent(0.6), recent(0.95)
    assert none < some < most and most > none + 0.2


def test_the_same_spec_gives_the_same_trace_and_a_seed_another() -> None:
    one, same, other = (synthesise(small(seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one.tensors[name], same.tensors[name]) for name in one.tensors)
    assert not torch.equal(one.tensors["k_fp8"], other.tensors["k_fp8"])


def test_a_synthetic_trace_is_a_factored_trace(tmp_path, device: str) -> None:
    made = synthesise(small(heads=8, width=32, yarn_factor=4.0, overlap=0.5))
    path = tmp_path / "synthetic.safetensors"
    save(made, path)
    trace = open_trace(path, device)
    assert isinstance(trace, Trace)
    assert (trace.keys, trace.steps, trace.heads, trace.width) == (4096, 9, 8, 32)
    assert torch.equal(trace.scores(4).cpu(), made.scores(4))
    about = trace.metadata["synthetic"]
    assert about == json.loads(json.dumps(made.metadata["synthetic"]))
    assert about["character"]["locality"] == ORDINARY.locality and about["yarn_factor"] == 4.0
    assert cut(trace, 1000, 3).scores(2).shape == (1000,)


def test_approximate_scores_are_the_scores_up_to_rounding() -> None:
    trace = synthesise(small())
    found = approximate_scores(trace, [0, 5])
    for row, step in enumerate((0, 5)):
        seen = trace.visible(step)
        assert torch.allclose(found[row, :seen], trace.scores(step), atol=1e-4)
        assert (found[row, seen:] == -torch.inf).all()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"steps": 0}, "steps: got 0, need at least 1"),
        ({"ties": 0}, "ties: got 0, need at least 1"),
        ({"keys": 8}, r"keys: got 8, need at least as many as steps \(9\)"),
        ({"overlap": 1.5}, "overlap: got 1.5, need 0 .. 1"),
        ({"zeros": -0.1}, "zeros: got -0.1, need 0 .. 1"),
        ({"width": 30}, "width: got 30, need a multiple of 4"),
        ({"overlap": 0.5, "k": 4096}, "overlap: needs at least 2 steps"),
        ({"character": replace(HARD, locality=2.0)}, "locality: got 2, need 0 .. 1"),
        ({"yarn_factor": 0.5}, "yarn_factor: got .* 0.5, need .* yarn_factor >= 1"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesise(small(**knobs))


def test_the_committed_figures_are_those_of_the_characters() -> None:
    """A change of the generator without new figures, or of a character without a new fit, fails."""
    recorded = committed()
    pairs = {"ordinary": "A", "hard": "B"}
    assert set(recorded) == {*pairs, *pairs.values()}
    for character, recording in pairs.items():
        assert distance(recorded[character], recorded[recording]) < 2.5
        # The other recording is another layer: the figures can tell them apart.
        other = next(name for name in pairs.values() if name != recording)
        assert distance(recorded[character], recorded[other]) > 10


@pytest.mark.parametrize("name", CHARACTERS)
def test_a_character_resembles_its_recording(name: str) -> None:
    """At 8K keys, for a seed that the fit did not see."""
    recording = {"ordinary": "A", "hard": "B"}[name]
    wanted = {place: about for place, about in committed()[recording].items() if "8192" in place}
    trace = synthesise(SynthSpec(65536, 64, character=CHARACTERS[name], seed=7))
    found = figures(cut(trace, 8300, 64), pairs=4)
    assert abs(found["2048/8192"]["overlap"] - wanted["2048/8192"]["overlap"]) < 0.15
    assert abs(found["512/8192"]["recent"] - wanted["512/8192"]["recent"]) < 0.3
    assert abs(found["8192"]["kurtosis"] - wanted["8192"]["kurtosis"]) < 3
    assert distance({p: found[p] for p in wanted}, wanted) < 12


def test_yarn_keeps_fast_pairs_and_slows_the_slow_ones() -> None:
    plain = rope_frequencies(32)
    slowed = rope_frequencies(32, yarn_factor=40.0, original_context=4096)
    assert torch.allclose(plain[0], torch.tensor(1.0, dtype=torch.float64))
    ratio = plain / slowed
    assert torch.equal(ratio[:5], torch.ones(5, dtype=torch.float64))
    assert torch.allclose(ratio[-5:], torch.full((5,), 40.0, dtype=torch.float64))
    assert (ratio.diff() >= 0).all()


def test_yarn_frequencies_are_those_of_transformers() -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4)
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
    }
    config.max_position_embeddings = 40 * 4096
    config.rope_parameters = config.rope_scaling = parameters
    config.rope_theta = 10_000.0
    expected, _ = utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    found = rope_frequencies(32, yarn_factor=40.0, original_context=4096)
    assert torch.allclose(found.float(), expected, rtol=1e-5)


def test_a_rotation_keeps_products_of_equal_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 24, generator=generator, dtype=torch.float64)
    frequencies = rope_frequencies(8, base=1e4)

    def product(a: int, b: int) -> torch.Tensor:
        turned = (
            rotate(vector, torch.tensor(place), frequencies)
            for vector, place in ((query, a), (key, b))
        )
        return torch.dot(*turned)

    assert torch.allclose(product(5, 3), product(1005, 1003))
    assert not torch.allclose(product(5, 3), product(5, 4))
    back = rotate(rotate(key, torch.tensor(77), frequencies), torch.tensor(-77), frequencies)
    assert torch.allclose(back, key)
    assert torch.equal(rotate(key, torch.tensor(9), frequencies)[16:], key[16:])
