# SPDX-License-Identifier: Apache-2.0
"""torch.export: the operators in an exported program, with growing shapes and with state.

AOTInductor from C++ is tests/cpp/exported.cpp, whose package tests/cpp/export_package.py makes.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor, nn
from torch.export import Dim

import gvr_topk
from gvr_topk.nn import TopK

K = 16


class Select(nn.Module):
    def forward(self, scores: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = gvr_topk.topk(scores, K, lengths=lengths)
        return values, indices


def _exported(device: str) -> torch.export.ExportedProgram:
    scores = make_rows("normal", 3, 100, K, device=device)
    lengths = torch.tensor([100, 7, 0], device=device)
    rows, keys = Dim("rows", min=1, max=4096), Dim("keys", min=K, max=1 << 20)
    shapes = {"scores": {0: rows, 1: keys}, "lengths": {0: rows}}
    return torch.export.export(Select(), (scores, lengths), dynamic_shapes=shapes)


def _check(module: object, device: str, sizes: list[tuple[int, int]]) -> None:
    for rows, n in sizes:
        scores = make_rows("quantised_33", rows, n, K, device=device, seed=n)
        lengths = torch.arange(n, n - rows, -1, device=device)
        values, indices = module(scores, lengths)  # type: ignore[operator]
        assert_exact(exact_answer(scores, K, lengths=lengths), indices, values)


def test_an_exported_program_selects_at_other_sizes(device: str) -> None:
    program = _exported(device)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.gvr.topk.default in called
    _check(program.module(), device, [(3, 100), (1, 17), (40, 3001)])


def test_an_exported_program_survives_a_file(device: str) -> None:
    file = io.BytesIO()
    torch.export.save(_exported(device), file)
    file.seek(0)
    _check(torch.export.load(file).module(), device, [(2, 50), (5, 777)])


def test_an_exported_step_advances_its_buffer(device: str) -> None:
    module, plain = (TopK(K, 3, device=device) for _ in range(2))
    scores = make_rows("normal", 2, 80, K, device=device)
    slots, lengths = (torch.tensor(given, device=device) for given in ([2, 0], [80, 9]))
    program = torch.export.export(module, (scores, slots, lengths))
    stepped = program.module()
    for seed in range(3):
        scores = make_rows("quantised_33", 2, 80, K, device=device, seed=seed)
        lengths = torch.tensor([70 + seed, 0], device=device)
        assert_exact(exact_answer(scores, K, lengths=lengths), stepped(scores, slots, lengths))
        plain(scores, slots, lengths)
        assert torch.equal(stepped.state[..., [0, 3]], plain.state[..., [0, 3]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_aotinductor_loads_and_runs_on_the_gpu(tmp_path: Path) -> None:
    package = torch._inductor.aoti_compile_and_package(
        _exported("cuda"), package_path=str(tmp_path / "topk.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    _check(loaded, "cuda", [(3, 100), (1, 17), (40, 3001), (8, 70_000)])
