# SPDX-License-Identifier: Apache-2.0
"""gvr_topk.nn.TopK: the module form of TopKCache.step."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

from gvr_topk import TopKCache
from gvr_topk.nn import TopK

N, K = 300, 32


def _scores(device: str, seed: int = 0, rows: int = 3) -> Tensor:
    return make_rows("quantised_4097", rows, N, K, device=device, seed=seed)


def _entries(module: TopK) -> Tensor:
    """How many hints every (layer, slot) holds."""
    return module.state[:, :, 0, 0]


def test_the_module_selects_exactly_and_remembers(device: str, dtype: torch.dtype) -> None:
    module = TopK(K, slots=5, layers=2, device=device)
    slots = torch.tensor([4, 0, -1], device=device)
    for step in range(3):
        lengths = torch.tensor([N - 3 + step, 100 + step, N], device=device)
        for layer in range(2):
            scores = _scores(device, step).to(dtype)
            indices = module(scores, slots, lengths, layer=layer)
            assert_exact(exact_answer(scores, K, lengths=lengths), indices)
    assert _entries(module).tolist() == [[K, 0, 0, 0, K]] * 2


def test_the_module_steps_as_a_cache_does(device: str) -> None:
    module = TopK(K, 4, depth=2, hint_size=20, device=device)
    cache = TopKCache(1, 4, K, depth=2, hint_size=20, device=device)
    slots = torch.tensor([2, 1], device=device)
    lengths = torch.tensor([N, 90], device=device)
    window = {"starts": torch.tensor([3, 0], device=device), "next_n": 2, "compress_ratio": 1}
    for seed in range(3):
        scores = _scores(device, seed, rows=4)
        ours = module(scores, slots, lengths, **window)
        theirs = cache.step(scores, 0, slots, lengths, **window)
        assert torch.equal(ours.sort(-1).values, theirs.sort(-1).values)
        assert torch.equal(module.state[..., 0], cache.state[..., 0])


def test_options_of_the_constructor_hold_in_every_step(device: str, algorithm: str) -> None:
    module = TopK(K, 3, sorted=True, algorithm=algorithm, device=device)
    for seed in range(2):
        scores = _scores(device, seed)
        assert_exact(exact_answer(scores, K), module(scores), sorted=True)


def test_the_cache_is_the_same_memory(device: str) -> None:
    module = TopK(K, 3, depth=2, device=device)
    module(_scores(device))
    module.cache.reset([1])
    assert _entries(module).tolist() == [[K, 0, K]]
    module.cache.copy([0], [1])
    assert torch.equal(module.state[0, 1], module.state[0, 0])
    module.cache.reset()
    assert not bool(module.state[..., :4].any())


def test_the_state_is_a_buffer_that_no_checkpoint_holds(device: str) -> None:
    module = TopK(K, 3, device=device)
    assert dict(module.named_buffers())["state"].data_ptr() == module.cache.state.data_ptr()
    assert module.state_dict() == {}
    module.load_state_dict({})
    assert list(module.parameters()) == []


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_has_hints_of_its_own(device: str, way: str) -> None:
    module = TopK(K, 3, layers=2, hint_size=7, depth=2, sorted=True, device=device)
    scores = _scores(device)
    module(scores, layer=1)
    if way == "deepcopy":
        other = copy.deepcopy(module)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert repr(other) == repr(module)
    assert other.state.shape == module.state.shape and other.state.device == module.state.device
    assert not bool(other.state.any()) and bool(module.state.any())
    assert_exact(exact_answer(scores, K), other(scores, layer=1), sorted=True)
    assert bool(other.cache.state.any())


def test_casting_the_model_leaves_the_state_alone(device: str) -> None:
    model = torch.nn.Sequential(TopK(K, 3, device=device), torch.nn.Linear(2, 2)).to(device)
    model[0](_scores(device))
    before = model[0].state.clone()
    model.half().train().eval().to(device)
    assert model[0].state.dtype == torch.int32
    assert torch.equal(model[0].state, before)
    assert model[0].state.data_ptr() == model[0].cache.state.data_ptr()


def test_a_moved_module_begins_without_hints() -> None:
    module = TopK(K, 3, device="meta").to_empty(device="cpu")
    assert module.state.device.type == "cpu" and not bool(module.state.any())
    scores = _scores("cpu")
    assert_exact(exact_answer(scores, K), module(scores))
    assert module.cache.state.data_ptr() == module.state.data_ptr()
    module.to_empty(device="cpu")  # whatever this memory held is no hint
    assert not bool(module.state.any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_module_follows_its_model_to_the_gpu_and_back() -> None:
    module = TopK(K, 3).cuda()
    scores = _scores("cuda")
    assert_exact(exact_answer(scores, K), module(scores))
    assert module.cache.device == module.state.device == scores.device
    module.cpu()
    assert_exact(exact_answer(scores.cpu(), K), module(scores.cpu()))


def test_bad_input_is_one_clear_error(device: str) -> None:
    module = TopK(K, 3, device=device)
    scores = _scores(device)
    with pytest.raises(IndexError, match=r"layer: got 1, need 0 <= layer < 1"):
        module(scores, layer=1)
    with pytest.raises(TypeError, match="layer: got str"):
        module(scores, layer="0")
    with pytest.raises(TypeError, match="scores: got list"):
        module([1.0])
    with pytest.raises(TypeError, match="slots: got list"):
        module(scores, [0, 1, 2])
    with pytest.raises(ValueError, match="slots: got None for 4 requests"):
        module(_scores(device, rows=4))
    with pytest.raises(ValueError, match="next_n: got 3"):
        module(scores, next_n=3)
    assert not bool(module.state.any())
    for arguments, error, message in (
        ({"k": 0, "slots": 3}, ValueError, "k: got 0"),
        ({"k": "4", "slots": 3}, TypeError, "k: got str"),
        ({"k": 4, "slots": 0}, ValueError, "slots: got 0"),
        ({"k": 4, "slots": 3, "layers": 0}, ValueError, "layers: got 0"),
        ({"k": 4, "slots": 3, "hint_size": 5}, ValueError, "hint_size: got 5"),
        ({"k": 4, "slots": 3, "sorted": 1}, TypeError, "sorted: got int"),
        ({"k": 4, "slots": 3, "algorithm": None}, TypeError, "algorithm: got NoneType"),
    ):
        with pytest.raises(error, match=message):
            TopK(**arguments, device=device)
    with pytest.raises(ValueError, match="algorithm: got"):
        TopK(4, 3, algorithm="fastest", device=device)
