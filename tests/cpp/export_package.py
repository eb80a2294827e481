# SPDX-License-Identifier: Apache-2.0
"""Compiles gvr::topk_indices with AOTInductor for exported.cpp: export_package.py PACKAGE.pt2"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.export import Dim

import gvr_topk

K = 40


class Select(torch.nn.Module):
    """The K best of scores that are made inside, so that Inductor has something to fuse."""

    def forward(self, logits: Tensor, lengths: Tensor) -> Tensor:
        return gvr_topk.topk_indices(logits * 2.0, K, lengths=lengths, sorted=True)


def main(package: str) -> None:
    rows, keys = Dim("rows", min=1, max=4096), Dim("keys", min=K, max=1 << 20)
    program = torch.export.export(
        Select(),
        (torch.randn(3, 200), torch.tensor([200, 7, 0])),
        dynamic_shapes={"logits": {0: rows, 1: keys}, "lengths": {0: rows}},
    )
    # Speed is not what is tested: the plain C++ compiles faster.
    options = {"cpp.simdlen": 1}
    torch._inductor.aoti_compile_and_package(
        program, package_path=package, inductor_configs=options
    )


if __name__ == "__main__":
    main(sys.argv[1])
