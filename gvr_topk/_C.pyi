# SPDX-License-Identifier: Apache-2.0
from typing import Any

import torch
from torch import Tensor

torch_version: str
has_cuda: bool
state_header: int  # words in front of the hints of a state entry

class TopKCache:
    def __init__(
        self,
        layers: int,
        slots: int,
        k: int,
        *,
        hint_size: int | None = None,
        depth: int = 1,
        device: torch.device = ...,
    ) -> None: ...
    def step(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        starts: Tensor | None = None,
        next_n: int = 1,
        compress_ratio: int = 1,
        hint_offset: int = 0,
        sorted: bool = False,
        algorithm: str = "auto",
        return_values: bool = False,
        return_stats: bool = False,
    ) -> Any: ...
    def step_kv(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        page_table: Tensor | None = None,
        page_size: int = 1,
        offsets: Tensor | None = None,
        row_to_request: Tensor | None = None,
        windows_per_row: bool = False,
        starts: Tensor | None = None,
        next_n: int = 1,
        compress_ratio: int = 1,
        hint_offset: int = 0,
        sorted: bool = False,
        algorithm: str = "auto",
    ) -> tuple[Tensor, Tensor]: ...
    def step_difference(
        self,
        scores: Tensor,
        layer: int,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        row_to_request: Tensor | None = None,
        windows_per_row: bool = False,
        starts: Tensor | None = None,
        next_n: int = 1,
        compress_ratio: int = 1,
        hint_offset: int = 0,
        sorted: bool = False,
        algorithm: str = "auto",
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
    def seed(self, layer: int, slots: Tensor, indices: Tensor) -> None: ...
    def remap(self, slots: Tensor, positions: Tensor) -> None: ...
    def export_entries(self, slots: Tensor) -> Tensor: ...
    def import_entries(self, slots: Tensor, entries: Tensor) -> None: ...
    def reset(self, slots: Tensor | None = None) -> None: ...
    def copy(self, src: Tensor, dst: Tensor) -> None: ...
    def commit(self, slots: Tensor, accepted: Tensor) -> None: ...
    @property
    def state(self) -> Tensor: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def layers(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def hint_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

def get_tuning() -> dict[str, int]: ...
def set_tuning(**overrides: int) -> None: ...
def make_plan(
    rows: int,
    n: int,
    k: int,
    dtype: torch.dtype = ...,
    has_hint: bool = False,
    algorithm: str = "auto",
    *,
    sm_count: int = 132,
    capability: int = 90,
    shared_bytes_per_block: int = ...,
    max_cluster: int = 16,
) -> dict[str, Any]: ...
