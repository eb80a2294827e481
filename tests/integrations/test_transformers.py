# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face transformers generate the same tokens with and without gvr_topk.

What "the same" needs: of equal scores at the K-th place torch.topk may take any. So every run is
compared with the model's own forward pass in which a stable sort selects, and with the untouched
model wherever no such tie came up, which is counted. Both comparisons are bit for bit.
"""

from __future__ import annotations

import copy
import functools
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("transformers", reason="needs transformers")

import transformers
from packaging.version import Version
from tiny_models import (
    ABSENT,
    INDEXED_LAYERS,
    LATER_MODELS,
    MODELS,
    TOP_K,
    VOCABULARY,
    places,
    tiny_model,
)

from gvr_topk.integrations import transformers as adapter
from gvr_topk.reference import topk_reference

# `make test-transformers` says which version it means to test.
REQUIRED = os.environ.get("GVR_TRANSFORMERS")
if REQUIRED is not None and transformers.__version__ != REQUIRED:
    raise ImportError(f"transformers: got {transformers.__version__}, need {REQUIRED}")
try:
    adapter._check_version()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

NEW_TOKENS = 16
# 5.11 and 5.12 add a boolean mask to the scores instead of applying it: masked keys are selected,
# too, and those of padding tie. Nor do they take back the index keys of rejected tokens.
SINCE_5_17 = Version(transformers.__version__) >= Version("5.17")
# Masked scores are -inf or, with a float mask, about the least number of the dtype.
MASKED = -1e30
# The caches of deepseek_v4 are its own; transformers has no static one for it.
STATIC = ["deepseek_v32", "glm_moe_dsa"]
NOT_HERE = pytest.mark.skip(reason=f"not in transformers {transformers.__version__}")
LATER = [pytest.param(name, marks=NOT_HERE if name in ABSENT else ()) for name in LATER_MODELS]
EVERY = [*MODELS, *LATER]
# The blocks of minimax_m3_vl are selected for every head, so that no row is a token.
HINTED = [*MODELS, *(later for later in LATER if later.values != ("minimax_m3_vl",))]


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# Not a fixture of the module: the order in which workers run the tests would decide what it holds.
_shared_model = functools.cache(tiny_model)


@pytest.fixture
def model(name: str, device: str) -> Iterator[torch.nn.Module]:
    shared = _shared_model(name, device)
    yield shared
    adapter.disable(shared)


def _prompt(name: str, device: str, batch: int = 1, length: int | None = None) -> Tensor:
    """Long enough that every indexer has more keys than it may select."""
    length = length or (72 if name == "deepseek_v4" else 30)
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator).to(device)


def _generate(model: torch.nn.Module, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(tokens, logits of every step) of a greedy or beam search."""
    result = model.generate(
        ids,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences, torch.stack(result.logits)


class _TieCounter(TorchFunctionMode):
    """Counts selections in an indexer that left torch.topk a choice among finite scores."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.selections = self.ties = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # k tells the indexer's selection from those of the router.
        if func is torch.Tensor.topk and args[1] == self.k < args[0].shape[-1]:
            best = torch.topk(args[0], args[1] + 1, dim=-1).values
            last, next_best = best[..., -2], best[..., -1]
            self.selections += last.numel()
            self.ties += int(((last == next_best) & (last > MASKED)).sum())
        return func(*args, **(kwargs or {}))


def _by_stable_sort(scores: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor]:
    return topk_reference(scores, k)


def _check_same(
    model: torch.nn.Module,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    *,
    may_tie: bool = not SINCE_5_17,
    **options: Any,
) -> None:
    adapter.disable(model)
    with _TieCounter(places(model)) as counter:
        plain = _generate(model, ids, **options)
    assert counter.selections > 0, "the prompt is too short for a selection"

    adapter.enable(model)
    ours = _generate(model, ids, **options)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "topk", _by_stable_sort)
        stable = _generate(model, ids, **options)
    assert torch.equal(ours[0], stable[0]) and torch.equal(ours[1], stable[1])
    if counter.ties == 0:
        assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])
    if not may_tie and ids.device.type == "cpu" and model.dtype == torch.float32:
        assert counter.ties == 0, "choose weights without ties, so that both comparisons are made"


@pytest.mark.parametrize("name", EVERY)
def test_greedy_generation_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_same(model, _prompt(name, device), monkeypatch)


@pytest.mark.parametrize("name", EVERY)
def test_a_padded_batch_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = _prompt(name, device, batch=3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 11)):
        mask[row, :padding] = 0
    # These two select from pools and blocks of padding as well, whose scores are all alike.
    may_tie = not SINCE_5_17 or name in ("glm5_next", "minimax_m3_vl")
    _check_same(model, ids * mask, monkeypatch, may_tie=may_tie, attention_mask=mask)


@pytest.mark.parametrize("name", EVERY)
def test_beam_search_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 10}
    _check_same(model, _prompt(name, device, batch=2), monkeypatch, **options)


def test_generation_without_a_cache_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"use_cache": False, "max_new_tokens": 4}
    _check_same(model, _prompt(name, device), monkeypatch, **options)


@pytest.mark.parametrize("name", [*STATIC, *LATER])
def test_a_static_cache_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cache_implementation": "static", "disable_compile": True}
    _check_same(model, _prompt(name, device, batch=2), monkeypatch, **options)


@pytest.mark.skipif(not SINCE_5_17, reason="transformers does not assist these models")
@pytest.mark.parametrize("name", STATIC)
def test_assisted_generation_is_the_same(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tokens per step, and a cache that is cut back where they are rejected."""
    ids = _prompt(name, device).repeat(1, 2)
    _check_same(model, ids, monkeypatch, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_attention_is_the_same(
    attention: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("deepseek_v32", device, attn_implementation=attention)
    _check_same(model, _prompt("deepseek_v32", device), monkeypatch, max_new_tokens=6)


def test_16_bit_weights_are_the_same(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, device, torch.bfloat16)
    _check_same(model, _prompt(name, device, batch=2), monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_real_index_sizes_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 index heads of 128 in bf16, K 2048 (512 of four times as many keys for deepseek_v4)."""
    compressed = name == "deepseek_v4"
    sizes = {
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 512 if compressed else 2048,
        "max_position_embeddings": 8192,
    }
    model = tiny_model(name, "cuda", torch.bfloat16, **sizes)
    ids = _prompt(name, "cuda", length=2400)
    _check_same(model, ids, monkeypatch, max_new_tokens=24)


def test_the_lowest_of_tied_scores_is_selected(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One index head: half of all scores are zero and the K-th place lies among them."""
    model = tiny_model("deepseek_v32", device, index_n_heads=1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.indexer.weights_proj.weight.abs_().neg_()
    ids = _prompt("deepseek_v32", device)
    with _TieCounter(TOP_K) as counter:
        _generate(model, ids)
    assert counter.ties > 0
    ours = _generate(adapter.enable(model), ids)
    monkeypatch.setattr(adapter, "topk", _by_stable_sort)
    stable = _generate(model, ids)
    assert torch.equal(ours[0], stable[0]) and torch.equal(ours[1], stable[1])


@pytest.mark.parametrize("name", EVERY)
def test_the_comparison_would_notice_another_selection(
    name: str, model: torch.nn.Module, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = _prompt(name, device)
    plain = _generate(model, ids)
    adapter.enable(model)

    def one_wrong(scores: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor]:
        values, indices = topk_reference(scores, min(k + 1, scores.shape[-1]))
        return values[..., -k:], indices[..., -k:]  # the best key is missing

    monkeypatch.setattr(adapter, "topk", one_wrong)
    other = _generate(model, ids)
    assert not torch.equal(other[1], plain[1])


class _Calls:
    """Stands for `topk` in the adapter and keeps what it was asked."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner
        self.shapes: list[tuple[int, ...]] = []
        self.hints: list[Tensor | None] = []

    def __call__(self, scores: Tensor, k: int, **options: Any) -> Any:
        self.shapes.append(tuple(scores.shape))
        self.hints.append(options.get("hint"))
        return self.inner(scores, k, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    spy = _Calls(adapter.topk)
    monkeypatch.setattr(adapter, "topk", spy)
    return spy


@pytest.mark.parametrize("name", HINTED)
def test_every_decode_step_has_the_previous_answer_as_its_hint(
    name: str, model: torch.nn.Module, device: str, calls: _Calls
) -> None:
    _generate(adapter.enable(model), _prompt(name, device, batch=2))
    layers = INDEXED_LAYERS[name]
    assert len(calls.hints) == layers * NEW_TOKENS
    assert all(hint is None for hint in calls.hints[:layers])  # the prefill
    for shape, hint in zip(calls.shapes[layers:], calls.hints[layers:], strict=True):
        assert shape[:2] == (2, 1)
        assert hint is not None and hint.shape == (2, 1, places(model))
        assert hint.dtype == torch.int32
        assert int(hint.min()) >= 0 and int(hint.max()) < shape[2]


def test_another_cache_or_batch_has_no_hint(
    name: str, model: torch.nn.Module, device: str, calls: _Calls
) -> None:
    adapter.enable(model)
    first = _prompt(name, device, batch=2)
    caches = [transformers.DynamicCache(config=model.config) for _ in range(2)]
    for cache in caches:
        model(first, past_key_values=cache)
    token = first[:, :1]
    layers = INDEXED_LAYERS[name]

    def hinted(**inputs: Any) -> bool:
        calls.hints.clear()
        model(**inputs)
        assert len(calls.hints) == layers
        return all(hint is not None for hint in calls.hints)

    assert not hinted(input_ids=token, past_key_values=caches[0])  # the other was seen last
    assert hinted(input_ids=token, past_key_values=caches[0])
    assert not hinted(input_ids=first, past_key_values=caches[0])  # a prompt of many tokens
    assert hinted(input_ids=token, past_key_values=caches[0])
    assert not hinted(input_ids=token, past_key_values=caches[1])
    assert not hinted(input_ids=first[:1])  # no cache of the caller's


def test_a_prefill_leaves_one_row_behind(name: str, model: torch.nn.Module, device: str) -> None:
    cache = transformers.DynamicCache(config=model.config)
    adapter.enable(model)(_prompt(name, device, batch=2), past_key_values=cache)
    for indexer in adapter._indexers_of(model):
        _, _, newest = indexer._gvr_previous
        assert newest.untyped_storage().nbytes() == 2 * TOP_K * 4


def test_selections_of_several_heads_come_best_first(device: str) -> None:
    """Callers read them up to the first score of -inf."""
    indexer = adapter._indexers_of(adapter.enable(tiny_model("deepseek_v32", device)))[0]
    scores = torch.randn(2, 3, 4, 40, device=device)
    scores[..., 5:] = -torch.inf
    given, expected = adapter._answer(indexer, object(), scores, 7), scores.topk(7)
    assert torch.equal(given.values, expected.values)
    assert torch.equal(given.indices[..., :5], expected.indices[..., :5])


def test_the_answer_looks_like_that_of_torch(device: str) -> None:
    """dtypes, shapes and gradient; what is not the indexer's selection goes to torch."""
    model = adapter.enable(tiny_model("deepseek_v32", device))
    indexer = adapter._indexers_of(model)[0]
    scores = torch.randn(2, 5, 40, device=device, requires_grad=True)

    def ask(*args: Any, **kwargs: Any) -> Any:
        return adapter._answer(indexer, None, *args, **kwargs)

    given, expected = ask(scores, 7, dim=-1), scores.topk(7, dim=-1)
    assert type(given) is type(expected)
    assert given.indices.dtype == torch.int64 and int(given.indices.min()) >= 0
    assert torch.equal(given.indices.sort(-1).values, expected.indices.sort(-1).values)
    given.values.sum().backward()
    chosen = torch.zeros_like(scores).scatter_(-1, expected.indices, 1.0)
    assert torch.equal(scores.grad, chosen)
    for args, kwargs in (
        ((scores, 0), {}),
        ((scores, 3, 1), {}),
        ((scores, 3), {"largest": False}),
        ((scores.double(), 3), {}),
    ):
        assert torch.equal(ask(*args, **kwargs).indices, torch.topk(*args, **kwargs).indices)
    with pytest.raises(RuntimeError, match="k"):
        ask(scores, 41)


def test_enable_and_disable_leave_no_trace(name: str, model: torch.nn.Module) -> None:
    kinds = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    keys = list(model.state_dict())
    assert adapter.enable(model) is model
    assert list(model.state_dict()) == keys
    assert sum(isinstance(m, adapter._Selecting) for m in model.modules()) == INDEXED_LAYERS[name]
    adapter.enable(model, algorithm="radix")
    assert {i._gvr_algorithm for i in adapter._indexers_of(model)} == {"radix"}
    assert adapter.disable(model) is model
    adapter.disable(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_enabled_model_stands_alone(
    way: Callable[[torch.nn.Module], torch.nn.Module],
    name: str,
    model: torch.nn.Module,
    device: str,
) -> None:
    ids = _prompt(name, device)
    expected = _generate(adapter.enable(model), ids, max_new_tokens=4)
    other = way(model)
    indexers = adapter._indexers_of(other)
    assert all(isinstance(i, adapter._Selecting) and i._gvr_previous is None for i in indexers)
    adapter.disable(model)
    given = _generate(other, ids, max_new_tokens=4)
    assert torch.equal(given[0], expected[0]) and torch.equal(given[1], expected[1])


@torch.no_grad()
def test_a_compiled_forward_pass_is_the_same(device: str) -> None:
    model = tiny_model("deepseek_v32", device)
    ids = _prompt("deepseek_v32", device, batch=2)
    logits = []
    for use in (adapter.disable, adapter.enable):
        torch._dynamo.reset()
        compiled = torch.compile(use(model), fullgraph=True, backend="eager")
        logits.append(compiled(ids, use_cache=False).logits)
    assert torch.equal(*logits)


@torch.no_grad()
@pytest.mark.skipif(not SINCE_5_17, reason="its unfilled keys are selected, too, and tie")
@pytest.mark.parametrize("name", STATIC)
def test_a_compiled_step_on_a_static_cache_is_the_same(name: str, device: str) -> None:
    """What `generate` makes of a static cache on a GPU."""
    model = tiny_model(name, device)
    ids = _prompt(name, device, batch=2)
    found = []
    for use in (adapter.disable, adapter.enable):
        torch._dynamo.reset()
        cache = transformers.StaticCache(config=model.config, max_cache_len=40)
        logits = [use(model)(ids, past_key_values=cache).logits]
        step = torch.compile(model, fullgraph=True, backend="eager")
        for _ in range(4):
            token = logits[-1][:, -1:].argmax(-1)
            logits.append(step(token, past_key_values=cache).logits)
        found.append(torch.cat(logits, 1))
    assert torch.equal(*found)


def test_an_indexer_without_topk_is_an_error(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapter.enable(tiny_model("deepseek_v32", device))
    base = type(adapter._indexers_of(model)[0]).__mro__[2]

    def forward(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        batch, tokens, _ = hidden_states.shape
        return torch.zeros(batch, tokens, 1, dtype=torch.int32, device=hidden_states.device)

    monkeypatch.setattr(base, "forward", forward)
    with pytest.raises(RuntimeError, match=r"GvrTopKDeepseekV32Indexer: no Top-K was found"):
        model(_prompt("deepseek_v32", device))


def test_bad_models_and_versions_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="model: got str, need a transformers model"):
        adapter.enable("deepseek-ai/DeepSeek-V3.2")
    with pytest.raises(ValueError, match=r"model: got .*Linear without an indexer, need .*glm_moe"):
        adapter.enable(torch.nn.Linear(2, 2))
    module = sys.modules[
        "transformers"
    ]  # a lazy one, which may have replaced the one imported above
    model = tiny_model("deepseek_v32")
    with pytest.raises(ValueError, match="algorithm: got"):
        adapter.enable(model, algorithm="fastest")
    with pytest.raises(TypeError, match="algorithm: got int"):
        adapter.enable(model, algorithm=1)
    for version in ("5.10.4", "4.57.6", "6.0.0"):
        monkeypatch.setattr(module, "__version__", version)
        with pytest.raises(ImportError, match=f"got {version}, need transformers>=5.11,<6"):
            adapter.enable(model)
    for version in ("5.11.0", "5.17.0", "5.99.1"):
        monkeypatch.setattr(module, "__version__", version)
        adapter.disable(adapter.enable(model))
    assert not any(isinstance(module, adapter._Selecting) for module in model.modules())
