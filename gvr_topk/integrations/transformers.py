# SPDX-License-Identifier: Apache-2.0
"""gvr_topk inside Hugging Face transformers: the indexers of its sparse-attention models select
with `gvr_topk.topk`. `INDEXERS` lists them.

    >>> from gvr_topk.integrations.transformers import enable
    >>> enable(model)
    >>> model.generate(**inputs)

An indexer keeps its own forward pass; only the call of `topk` inside it is answered here, with
`(values, indices)` of the same shapes and dtypes (indices int64, never -1). What follows from it:

* Attention implementations, caches, padding, beam search, assisted generation and the training of
  the indexer go on as before.
* The selected set is that of a stable sort. It differs from torch.topk's at most in which of
  several *equal* scores at the K-th place are taken, a choice that torch.topk leaves open.
* Indices come in no particular order, since these models turn them into a mask or gather by them.
  Block selections of several heads (`minimax_m3_vl`), which are read up to the first empty place,
  come best first.

The hint is the layer's previous answer. It is used for one new token per sequence on the cache and
batch of the previous call; the last row of a prefill is the first hint. Beams that a search has
reordered get another beam's hint: a hint changes the time only, never the answer. Compiled forward
passes take no hint.

Versions: transformers 5.11.0 (the first with `deepseek_v32`, `glm_moe_dsa` and `deepseek_v4`; the
others came later) up to, not including, 6; tested at both ends of `TESTED`. An indexer in which no
Top-K is found raises a RuntimeError.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gvr_topk import _C
from gvr_topk.ops import topk, type_name

__all__ = ["INDEXERS", "TESTED", "disable", "enable"]

INDEXERS = {
    "deepseek_v32": "DeepseekV32Indexer",
    "glm_moe_dsa": "GlmMoeDsaIndexer",
    "deepseek_v4": "DeepseekV4Indexer",
    "axk2": "AXK2Indexer",
    "dots3_note": "Dots3NoteTextIndexer",
    "glm5_next": "Glm5NextTextIndexer",
    "hy_v4": "HYV4Indexer",
    "minimax_m3_vl": "MiniMaxM3VLIndexer",
    "mistral_large4": "MistralLarge4TextIndexer",
}
TESTED = ("5.11.0", "5.23.0")
_OLDEST, _BEFORE = (5, 11), (6,)
_PREFIX = "GvrTopK"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound=nn.Module)


def enable(model: Model, *, algorithm: str = "auto") -> Model:
    """Let every indexer of the model select with gvr_topk; gives the model back.

    algorithm  as in `gvr_topk.ops`.

    Calling it again sets the algorithm anew. Parameters, `state_dict` and `save_pretrained` are
    left alone. Errors: ImportError without a supported transformers, TypeError and ValueError for a
    model without such indexers or an unknown algorithm; nothing has been changed then.
    """
    _check_version()
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm: got {type_name(algorithm)}, need a str")
    _C.make_plan(1, 1, 1, algorithm=algorithm)  # raises for an unknown name
    indexers = _indexers_of(model)
    if not indexers:
        raise ValueError(
            f"model: got {type_name(model)} without an indexer, "
            f"need a model of type {', '.join(INDEXERS)}"
        )
    for indexer in indexers:
        if not isinstance(indexer, _Selecting):
            own: Any = type(indexer)
            indexer.__class__ = _selecting(own)
        indexer._gvr_algorithm = algorithm
        indexer._gvr_previous = None
    return model


def disable(model: Model) -> Model:
    """Give the model's indexers their own selection back; gives the model back."""
    for indexer in _indexers_of(model):
        if isinstance(indexer, _Selecting):
            indexer.__class__ = type(indexer).__mro__[2]
            del indexer._gvr_algorithm, indexer._gvr_previous
    return model


class _Selecting:
    """In front of an indexer's class: its forward pass, with `topk` answered by gvr_topk."""

    _gvr_algorithm: str
    # (cache, number of keys, indices of the last row): what the next call may take as a hint.
    _gvr_previous: tuple[Any, int, Tensor] | None
    _gvr_cache_place: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        place = self._gvr_cache_place
        cache = args[place] if place < len(args) else kwargs.get("past_key_values")
        select = _Select(self, cache)
        with select:
            result = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not select.seen:
            raise RuntimeError(
                f"{type(self).__name__}: no Top-K was found in this indexer of transformers "
                f"{_version()}; tested from {TESTED[0]} to {TESTED[1]}"
            )
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gvr_previous": None}


class _Select(TorchFunctionMode):
    """Answers topk while it is active; every other function goes its own way."""

    def __init__(self, indexer: _Selecting, cache: Any) -> None:
        super().__init__()
        self.indexer = indexer
        self.cache = cache
        self.seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.topk or func is torch.topk:
            self.seen = True
            return _answer(self.indexer, self.cache, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _answer(
    indexer: _Selecting,
    cache: Any,
    input: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
    **out: Any,
) -> Any:
    """torch.topk(input, k, ...) of an indexer."""
    last = dim in (-1, input.dim() - 1)
    if not (last and largest and not out and 0 < k <= input.shape[-1] and input.dtype in _DTYPES):
        return torch.topk(input, k, dim, largest, sorted, **out)  # also for its own errors
    algorithm = indexer._gvr_algorithm
    if torch.compiler.is_compiling() or cache is None or input.dim() != 3:
        ordered = sorted and input.dim() != 3  # 3-D: one selection per token, used as a set
        values, indices = topk(input, k, sorted=ordered, algorithm=algorithm)
    else:
        hint = _hint(indexer, cache, input)
        values, indices = topk(input, k, hint=hint, algorithm=algorithm)
        # A copy of a prefill's last row, so that the others are freed.
        newest = indices if input.shape[1] == 1 else indices[:, -1:].clone()
        indexer._gvr_previous = (weakref.ref(cache), input.shape[-1], newest)
    return torch.return_types.topk((values, indices.long()))


def _hint(indexer: _Selecting, cache: Any, scores: Tensor) -> Tensor | None:
    """The layer's previous answer, if these are the scores of the same batch's next token."""
    if indexer._gvr_previous is None or scores.shape[1] != 1:
        return None
    previous, keys, indices = indexer._gvr_previous
    # A static cache keeps the number of keys, compressed keys come every few tokens.
    follows = 0 <= scores.shape[-1] - keys <= 1
    same_batch = indices.shape[0] == scores.shape[0] and indices.device == scores.device
    return indices if previous() is cache and follows and same_batch else None


@functools.cache
def _selecting(base: Any) -> type[Any]:
    parameters = list(inspect.signature(base.forward).parameters)
    members = {
        "__module__": __name__,
        "_gvr_cache_place": parameters.index("past_key_values") - 1,  # without self
    }
    return type(_PREFIX + base.__name__, (_Selecting, base), members)


def __getattr__(name: str) -> Any:
    """The classes that `enable` makes, for pickle in another process."""
    for model_type, indexer in INDEXERS.items():
        if name == _PREFIX + indexer:
            return _selecting(getattr(importlib.import_module(_module(model_type)), indexer))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _module(model_type: str) -> str:
    return f"transformers.models.{model_type}.modeling_{model_type}"


def _indexers_of(model: object) -> list[Any]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type_name(model)}, need a transformers model")
    return [module for module in model.modules() if _is_indexer(type(module))]


def _is_indexer(kind: type) -> bool:
    known = {(_module(model_type), name) for model_type, name in INDEXERS.items()}
    return any((base.__module__, base.__name__) in known for base in kind.__mro__)


def _version() -> str:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "transformers is not installed, need transformers>=5.11,<6 "
            "(pip install 'transformers>=5.11,<6')"
        ) from error
    return transformers.__version__


def _check_version() -> None:
    from packaging.version import Version

    found = Version(_version()).release
    if not _OLDEST <= found < _BEFORE:
        raise ImportError(f"transformers: got {_version()}, need transformers>=5.11,<6")
