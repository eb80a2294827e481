# SPDX-License-Identifier: Apache-2.0
"""Times to beat: (floor, best known) in microseconds per call, by K and (rows, N).

Measured on one NVIDIA H200 (132 SMs, CUDA 13.0): calls captured in a CUDA graph, scores rotating
over more than 130 MB, fp32, recorded rows up to N = 128K, synthetic ones above. The floor reads
every score once, takes a maximum and writes K integers per row. Best known is the fastest exact
result of nine public kernels in the same run: FlashInfer auto and clusters, vLLM cooperative and
persistent, SGLang v2, CUB batched Top-K, TensorRT-LLM radix and GVR V1, torch.topk.
"""

from __future__ import annotations

_K, _M = 1024, 1024 * 1024

FLOOR_AND_BEST: dict[int, dict[tuple[int, int], tuple[float, float]]] = {
    2048: {
        (1, 8 * _K): (2.8, 5.5),
        (1, 32 * _K): (2.8, 10.6),
        (1, 64 * _K): (2.9, 9.8),
        (1, 128 * _K): (3.4, 11.0),
        (1, 256 * _K): (3.4, 14.6),
        (1, _M): (5.2, 23.0),
        (4, 8 * _K): (2.9, 6.1),
        (4, 32 * _K): (3.0, 10.7),
        (4, 64 * _K): (3.0, 10.5),
        (4, 128 * _K): (3.6, 12.1),
        (16, 8 * _K): (3.0, 6.5),
        (16, 32 * _K): (3.3, 11.9),
        (16, 64 * _K): (4.0, 14.4),
        (16, 128 * _K): (4.9, 15.3),
        (16, 256 * _K): (6.7, 19.1),
        (16, _M): (17.8, 46.3),
        (64, 8 * _K): (3.4, 6.8),
        (64, 32 * _K): (5.1, 13.8),
        (64, 64 * _K): (6.8, 19.4),
        (64, 128 * _K): (10.8, 33.6),
        (64, 256 * _K): (18.3, 56.4),
        (64, _M): (61.3, 164.5),
        (128, 8 * _K): (4.2, 7.4),
        (128, 32 * _K): (6.9, 15.3),
        (128, 64 * _K): (11.0, 22.0),
        (128, 128 * _K): (18.7, 46.7),
        (512, 8 * _K): (9.0, 17.3),
        (512, 32 * _K): (20.1, 40.0),
        (512, 64 * _K): (35.1, 73.0),
        (512, 128 * _K): (65.3, 135.6),
    },
    512: {
        (1, 8 * _K): (2.8, 4.6),
        (1, 32 * _K): (2.8, 9.2),
        (1, 64 * _K): (2.9, 8.2),
        (1, 128 * _K): (3.4, 9.7),
        (1, 256 * _K): (3.4, 13.4),
        (1, _M): (5.2, 21.4),
        (4, 8 * _K): (2.9, 4.7),
        (4, 32 * _K): (3.0, 9.4),
        (4, 64 * _K): (3.0, 8.8),
        (4, 128 * _K): (3.6, 10.3),
        (16, 8 * _K): (3.0, 4.9),
        (16, 32 * _K): (3.3, 10.0),
        (16, 64 * _K): (4.0, 12.4),
        (16, 128 * _K): (4.9, 13.1),
        (16, 256 * _K): (6.6, 17.2),
        (16, _M): (17.6, 44.8),
        (64, 8 * _K): (3.3, 5.2),
        (64, 32 * _K): (5.0, 10.2),
        (64, 64 * _K): (6.6, 15.4),
        (64, 128 * _K): (10.5, 29.7),
        (64, 256 * _K): (17.9, 52.4),
        (64, _M): (60.8, 159.8),
        (128, 8 * _K): (4.1, 5.7),
        (128, 32 * _K): (6.7, 11.6),
        (128, 64 * _K): (10.6, 18.3),
        (128, 128 * _K): (18.3, 44.3),
        (512, 8 * _K): (8.4, 12.4),
        (512, 32 * _K): (19.2, 31.3),
        (512, 64 * _K): (34.1, 68.3),
        (512, 128 * _K): (63.6, 131.4),
    },
}

# A production radix selection (TensorRT-LLM's) at 1 x 64K, K 2048, on the same GPU.
PRODUCTION_RADIX_US = 36.0


def best_multiple(k: int, rows: int, n: int) -> float | None:
    """Best known time as a multiple of the floor, where it was measured."""
    pair = FLOOR_AND_BEST.get(k, {}).get((rows, n))
    return pair[1] / pair[0] if pair else None
