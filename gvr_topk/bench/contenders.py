# SPDX-License-Identifier: Apache-2.0
"""Who is measured. A contender turns a case into one call per buffer; each call gives indices."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import exact, floor
from .cells import Suite
from .timing import Call
from .workload import Buffer, Case

if TYPE_CHECKING:
    from gvr_topk.plan import Device

Check = Callable[[Tensor, Buffer], bool]


@dataclass(frozen=True)
class Contender:
    """`prepare(case, **variant)` gives the calls; of several variants the fastest counts."""

    name: str
    prepare: Callable[..., list[Call]]
    check: Check
    unavailable: Callable[[torch.device], str | None] = lambda device: None
    variants: Callable[[Case], list[dict[str, int]]] = lambda case: [{}]
    plan: Callable[[Case], dict[str, Any] | None] = lambda case: None  # what the library chose
    tuning: Mapping[str, int] = field(default_factory=dict)

    @contextmanager
    def tuned(self) -> Iterator[None]:
        if not self.tuning:
            yield
            return
        from gvr_topk.testing import tuning

        with tuning(**self.tuning):
            yield


def _tie_rule(indices: Tensor, buffer: Buffer) -> bool:
    return exact.same_indices(indices, buffer.expected)


def _any_ties(indices: Tensor, buffer: Buffer) -> bool:
    return exact.same_values(indices, buffer.scores, buffer.expected)


def _read_once(indices: Tensor, buffer: Buffer) -> bool:
    return exact.floor_read_everything(indices, buffer.scores)


def _floor(case: Case, dependent: bool, **variant: int) -> list[Call]:
    return [
        floor.prepare(buffer.scores, case.cell.k, dependent=dependent, **variant)
        for buffer in case.buffers
    ]


def _floor_variants(case: Case) -> list[dict[str, int]]:
    scores = case.buffers[0].scores
    return floor.variants(scores.shape[0], scores.shape[1], scores.element_size())


def _floor_unavailable(device: torch.device, dependent: bool) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    if dependent and torch.cuda.get_device_capability(device) < (9, 0):
        return "needs sm_90 or later"
    return floor.unavailable()


def _torch_topk(case: Case) -> list[Call]:
    def prepare(buffer: Buffer) -> Call:
        shape = (buffer.scores.shape[0], case.cell.k)
        values = buffer.scores.new_empty(shape)
        indices = buffer.scores.new_empty(shape, dtype=torch.int64)

        def call() -> Tensor:
            torch.topk(buffer.scores, case.cell.k, sorted=False, out=(values, indices))
            return indices

        return call

    return [prepare(buffer) for buffer in case.buffers]


def _torch_sort(case: Case) -> list[Call]:
    def prepare(buffer: Buffer) -> Call:
        values = torch.empty_like(buffer.scores)
        indices = torch.empty_like(buffer.scores, dtype=torch.int64)

        def call() -> Tensor:
            torch.sort(buffer.scores, dim=-1, descending=True, out=(values, indices))
            return indices[:, : case.cell.k]

        return call

    return [prepare(buffer) for buffer in case.buffers]


def _flashinfer(case: Case) -> list[Call]:
    from flashinfer import top_k

    return [
        functools.partial(lambda scores: top_k(scores, case.cell.k)[1], buffer.scores)
        for buffer in case.buffers
    ]


def _flashinfer_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    return None if importlib.util.find_spec("flashinfer") else "flashinfer is not installed"


def _load_extension(device: torch.device) -> str | None:
    """Registers the operators. Without them there is nothing to measure: ImportError."""
    from gvr_topk import topk_indices  # noqa: F401

    return None


def _gvr(case: Case, *, algorithm: str, hinted: bool, values: bool = False) -> list[Call]:
    ops = torch.ops.gvr
    k = case.cell.k

    def prepare(buffer: Buffer) -> Call:
        shape = (buffer.scores.shape[0], k)
        hint = buffer.hint if hinted else None
        indices = buffer.scores.new_empty(shape, dtype=torch.int32)
        options: dict[str, Any] = {"hint": hint, "algorithm": algorithm, "indices": indices}
        operator = ops.topk_indices.out
        if values:
            operator = ops.topk.out
            options["values"] = buffer.scores.new_empty(shape)

        def call() -> Tensor:
            operator(buffer.scores, k, **options)
            return indices

        return call

    return [prepare(buffer) for buffer in case.buffers]


def _chosen(case: Case, *, algorithm: str, hinted: bool) -> dict[str, Any] | None:
    from gvr_topk.plan import Device

    return plan_of(case, algorithm, hinted, Device.of(case.device)) if case.on_gpu else None


def plan_of(case: Case, algorithm: str, hinted: bool, device: Device) -> dict[str, Any]:
    """What the record keeps of the plan of a call: the kernel, its CTAs, the fate of the hint."""
    from gvr_topk.plan import plan

    scores, hint = case.buffers[0].scores, case.buffers[0].hint
    rows, n = scores.shape
    has_hint = hinted and hint is not None
    found = plan(
        rows,
        n,
        case.cell.k,
        dtype=scores.dtype,
        has_hint=has_hint,
        algorithm=algorithm,
        device=device,
    )
    return {
        "family": found.family,
        "ctas_per_row": found.ctas_per_row,
        "hint": ("used" if found.use_hint else "ignored") if has_hint else "none",
    }


def _step(case: Case, *, values: bool) -> list[Call]:
    """One cache layer per pair: its slots see a step and the one before in turns."""
    from gvr_topk import TopKCache

    pairs = len(case.buffers) // 2
    cache = TopKCache(pairs, case.cell.rows, case.cell.k, device=str(case.device))

    def prepare(place: int, buffer: Buffer) -> Call:
        layer = place % pairs
        if values:
            return lambda: cache.step(buffer.scores, layer, return_values=True)[1]
        return lambda: cache.step(buffer.scores, layer)

    return [prepare(place, buffer) for place, buffer in enumerate(case.buffers)]


def _ours(name: str, algorithm: str, *, hinted: bool = True, values: bool = False) -> Contender:
    return Contender(
        name,
        functools.partial(_gvr, algorithm=algorithm, hinted=hinted, values=values),
        _tie_rule,
        _load_extension,
        plan=functools.partial(_chosen, algorithm=algorithm, hinted=hinted),
    )


def _floor_contender(name: str, dependent: bool) -> Contender:
    return Contender(
        name,
        functools.partial(_floor, dependent=dependent),
        _read_once,
        functools.partial(_floor_unavailable, dependent=dependent),
        _floor_variants,
    )


REGISTRY: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        _floor_contender("floor", dependent=False),
        # The same kernel, whose launch overlaps the end of the one before.
        _floor_contender("floor-pdl", dependent=True),
        Contender("torch.topk", _torch_topk, _any_ties),
        # On CUDA this is CUB's radix or segmented sort, the sort-based selection.
        Contender("torch.sort", _torch_sort, _any_ties),
        Contender("flashinfer", _flashinfer, _any_ties, _flashinfer_unavailable),
        _ours("auto", "auto"),
        _ours("auto-nohint", "auto", hinted=False),
        _ours("gvr", "gvr"),
        _ours("resident", "resident", hinted=False),
        _ours("stream", "stream"),
        _ours("stream-nohint", "stream", hinted=False),
        _ours("radix", "radix", hinted=False),
        _ours("op", "auto"),
        _ours("op-values", "auto", values=True),
        Contender("step", functools.partial(_step, values=False), _tie_rule, _load_extension),
        Contender("step-values", functools.partial(_step, values=True), _tie_rule, _load_extension),
    )
}


def swept_name(name: str, tuning: Mapping[str, int]) -> str:
    """A contender under overridden tuning constants, e.g. "stream[ctas_per_row=4]"."""
    return f"{name}[{','.join(f'{key}={value}' for key, value in tuning.items())}]"


def of_suite(suite: Suite, device: torch.device, names: tuple[str, ...] = ()) -> list[Contender]:
    """The suite's contenders, and those that it sweeps under every combination of constants."""
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise ValueError(f"contender: got {unknown[0]!r}, need one of {', '.join(REGISTRY)}")
    found = [REGISTRY[name] for name in names or suite.contenders]
    for name, constants in product(suite.swept, product(*suite.sweep.values())):
        tuning = dict(zip(suite.sweep, constants, strict=True))
        if tuning:
            found.append(replace(REGISTRY[name], name=swept_name(name, tuning), tuning=tuning))
    return found
