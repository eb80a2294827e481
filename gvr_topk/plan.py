# SPDX-License-Identifier: Apache-2.0
"""The kernel that a shape gets on a device, and why; no GPU is needed to ask.

>>> from gvr_topk.plan import H200, plan
>>> print(plan(16, 65536, 2048, device=H200))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import _C

__all__ = ["H200", "Device", "Plan", "plan"]

_LONGEST = 2**31 - 1
_TAKES_NO_HINT = "radix"


class Device(NamedTuple):
    """What the choice depends on, beside the shape."""

    name: str
    sm_count: int
    capability: int  # 10 * major + minor
    shared_bytes_per_block: int  # the opt-in limit
    max_cluster: int  # CTAs that may share a row; 1 where there are no thread block clusters

    @classmethod
    def of(cls, device: torch.device | str | int = "cuda") -> Device:
        """A CUDA device of this machine. RuntimeError where torch finds none."""
        found = torch.cuda.get_device_properties(device)
        capability = 10 * found.major + found.minor
        # As read_device() in csrc/cuda/launch.cpp.
        widest = 16 if capability in (90, 100, 103) else 8
        return cls(
            found.name,
            found.multi_processor_count,
            capability,
            found.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # not in the stub
            widest if capability >= 90 else 1,
        )

    def limits(self) -> dict[str, int]:
        """Everything but the name: what the choice is made from."""
        return {name: value for name, value in self._asdict().items() if name != "name"}


H200 = Device("NVIDIA H200", 132, 90, 227 * 1024, 16)


@dataclass(frozen=True)
class Plan:
    """The choice for one call."""

    family: str  # gvr, resident, stream or radix
    ctas_per_row: int
    staging: int  # survivors that one CTA can hold
    use_hint: bool
    reasons: tuple[str, ...]  # one sentence each

    def __str__(self) -> str:
        ctas = f"{self.ctas_per_row} CTA{'s' * (self.ctas_per_row > 1)} per row"
        hint = "with the hint" if self.use_hint else "without a hint"
        return f"{self.family}, {ctas}, staging for {self.staging} survivors per CTA, {hint}"


def plan(
    rows: int,
    n: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    has_hint: bool = False,
    algorithm: str = "auto",
    device: Device = H200,
) -> Plan:
    """The plan for `rows` rows of `n` scores, with the reasons for it.

    The reasons are found by asking again with one thing changed, so they hold for whatever rule
    the library was built with. Overrides of `gvr_topk.testing.tuning` apply.
    """
    call = _Call(rows, n, k, dtype, has_hint, algorithm, device)
    chosen = call.ask()
    reasons = (call.why_family(chosen), call.why_ctas(chosen), call.why_hint(chosen))
    return Plan(
        chosen["family"],
        chosen["ctas_per_row"],
        chosen["staging"],
        chosen["use_hint"] and chosen["family"] != _TAKES_NO_HINT,
        tuple(reason for reason in reasons if reason),
    )


@dataclass(frozen=True)
class _Call:
    rows: int
    n: int
    k: int
    dtype: torch.dtype
    has_hint: bool
    algorithm: str
    device: Device

    def ask(self, **changes: Any) -> dict[str, Any]:
        arguments = {
            "rows": self.rows,
            "n": self.n,
            "k": self.k,
            "dtype": self.dtype,
            "has_hint": self.has_hint,
            "algorithm": self.algorithm,
            **self.device.limits(),
        }
        return _C.make_plan(**{**arguments, **changes})

    def why_family(self, chosen: dict[str, Any]) -> str:
        family = chosen["family"]
        if family == self.algorithm:
            return f"{family}: asked for by name"
        smaller = self.ask(k=1)["family"]
        if smaller != family:
            return f"{family}: K = {self.k} is too large for the staging memory of {smaller}"
        if self.algorithm != "auto":
            return f"{family}: the row does not fit into the shared memory of its CTAs"
        if family == "resident":
            return f"{family}: the row stays in the shared memory of its CTAs"
        if self.ask(rows=1)["family"] == "resident":
            return f"{family}: {self.rows} rows do not all stay in shared memory; one alone would"
        return f"{family}: a row of {self.n} scores does not stay in shared memory"

    def why_ctas(self, chosen: dict[str, Any]) -> str:
        ctas = chosen["ctas_per_row"]
        label = f"{ctas} CTA{'s' * (ctas > 1)} per row"

        def more(**changes: Any) -> bool:
            return self.ask(**changes)["ctas_per_row"] > ctas

        if _C.get_tuning()["ctas_per_row"]:
            return f"{label}: overridden"
        by_rows, by_length = more(rows=1), more(n=_LONGEST)
        if not (by_rows or by_length) and more(rows=1, n=_LONGEST):
            by_rows = by_length = True  # each alone allows no more
        limits = [f"{self.rows} rows share {self.device.sm_count} SMs"] if by_rows else []
        if by_length:
            limits.append(f"narrower slices of {self.n} scores would not pay")
        if limits:
            return f"{label}: {', and '.join(limits)}"
        if self.device.max_cluster == 1:
            return f"{label}: sm_{self.device.capability} has no thread block clusters"
        if ctas == 1:
            return f"{label}: {chosen['family']} reads a row with one"
        return f"{label}: the widest cluster that {self.device.name} runs"

    def why_hint(self, chosen: dict[str, Any]) -> str:
        if not self.has_hint:
            return ""
        if _C.get_tuning()["ignore_hint"]:
            return "hint not used: overridden"
        if chosen["family"] == _TAKES_NO_HINT:
            return f"hint not used: {_TAKES_NO_HINT} takes none"
        if chosen["use_hint"]:
            return f"hint used: {self.algorithm} always does"
        return "hint not used: a sample of this row sets the threshold as well, at less cost"
