# SPDX-License-Identifier: Apache-2.0
"""vLLM's Top-K calls of the sparse-attention indexer, answered by gvr_topk.

Argument names and order are those of `vllm/_custom_ops.py`, of the operators in `torch.ops._C` and
of `vllm/model_executor/layers/indexer_topk.py`. As there:

* results are int32, written in place, -1 behind a row's last valid index, in no particular order;
* what lies beyond a row's end is never read, whatever it is;
* with `next_n` rows per request row j of a request of length L ends at L - next_n + j + 1.

Unlike there any k, any number of rows, any row stride and fp32, bf16 or fp16 are served, on every
device, and ties go to the lowest index. The calls carry no request identity, so no hint is used;
`gvr_topk.TopKCache` takes slot ids where the scheduler has them. Errors: as in `gvr_topk.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gvr_topk.ops import check_int, check_tensor

from ._shared import check_counts, check_matrix, check_out, select

__all__ = [
    "SparseIndexerTopk",
    "cooperative_topk",
    "persistent_topk",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
]


def top_k_per_row_decode(
    logits: Tensor,
    next_n: int,
    seq_lens: Tensor,
    raw_topk_indices: Tensor,
    num_rows: int,
    stride0: int,
    stride1: int,
    topk_tokens: int,
) -> None:
    """Writes the best `topk_tokens` of each of the first `num_rows` rows.

    logits            [rows, max_model_len] with strides (stride0, stride1)
    seq_lens          int32 [requests] or [requests, 1], one length per request of next_n rows; or
                      [requests, next_n], the end of every row
    raw_topk_indices  int32 [rows, topk_tokens], written
    """
    logits, out = _rows(logits, raw_topk_indices, num_rows, stride0, stride1, topk_tokens)
    ends, per_request = _ends(logits, seq_lens, next_n)
    select(logits, topk_tokens, ends, next_n=per_request, out=out)


def top_k_per_row_prefill(
    logits: Tensor,
    cu_seqlen_ks: Tensor,
    cu_seqlen_ke: Tensor,
    raw_topk_indices: Tensor,
    num_rows: int,
    stride0: int,
    stride1: int,
    topk_tokens: int,
) -> None:
    """Writes the best `topk_tokens` of row i in [cu_seqlen_ks[i], cu_seqlen_ke[i]), counted from
    cu_seqlen_ks[i], for each of the first `num_rows` rows.
    """
    logits, out = _rows(logits, raw_topk_indices, num_rows, stride0, stride1, topk_tokens)
    for name, bound in (("cu_seqlen_ks", cu_seqlen_ks), ("cu_seqlen_ke", cu_seqlen_ke)):
        check_counts(name, bound, num_rows, "num_rows", logits)
    select(logits, topk_tokens, cu_seqlen_ke, cu_seqlen_ks, out=out)


def persistent_topk(
    logits: Tensor,
    lengths: Tensor,
    output: Tensor,
    workspace: Tensor | None,
    k: int,
    max_seq_len: int,
) -> None:
    """Writes the best k of row i in [0, min(lengths[i], max_seq_len)).

    lengths    int32, one per row, in any shape ([rows], [rows, 1], [requests, next_n])
    output     int32 [rows, k], written
    workspace  not needed, left alone
    """
    check_matrix("logits", logits)
    check_int("max_seq_len", max_seq_len)
    if max_seq_len < 0:
        raise ValueError(f"max_seq_len: got {max_seq_len}, need at least 0")
    ends = _flat("lengths", lengths)
    check_counts("lengths", ends, logits.shape[0], "one per row", logits)
    check_out("output", output, logits.shape[0], k)
    select(logits[:, :max_seq_len], k, ends, out=output)


def cooperative_topk(
    logits: Tensor,
    lengths: Tensor,
    output: Tensor,
    workspace: Tensor | None,
    k: int,
    max_seq_len: int,
) -> None:
    """As `persistent_topk`; vLLM's needs at most 64 rows and a row stride divisible by 4."""
    persistent_topk(logits, lengths, output, workspace, k, max_seq_len)


class SparseIndexerTopk(nn.Module):
    """The decode Top-K stage of vLLM's sparse indexer, with its `forward`.

    backend  accepted as in vLLM, and "gvr_topk" whatever it was.
    """

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()

    def resolve_backend(self, logits: Tensor, topk_tokens: int, num_rows: int) -> str:
        return "gvr_topk"

    def forward(
        self,
        logits: Tensor,
        seq_lens: Tensor,
        next_n: int,
        topk_indices: Tensor,
        topk_tokens: int,
        max_seq_len: int,
    ) -> None:
        """Writes into topk_indices, int32 [rows, topk_tokens].

        seq_lens     int32 [requests, 1], or [requests, next_n] with the end of every row
        max_seq_len  no row is longer: columns from there on are not read
        """
        check_matrix("logits", logits)
        check_int("max_seq_len", max_seq_len)
        check_out("topk_indices", topk_indices, logits.shape[0], topk_tokens)
        ends, per_request = _ends(logits, seq_lens, next_n)
        logits = logits[:, : max(0, max_seq_len)]
        select(logits, topk_tokens, ends, next_n=per_request, out=topk_indices)


def _rows(
    logits: Tensor, indices: Tensor, num_rows: int, stride0: int, stride1: int, k: int
) -> tuple[Tensor, Tensor]:
    """The first num_rows rows of both, once the numbers agree with the tensors."""
    check_matrix("logits", logits)
    check_matrix("raw_topk_indices", indices, torch.int32)
    check_int("num_rows", num_rows)
    if not 0 <= num_rows <= logits.shape[0]:
        raise ValueError(f"num_rows: got {num_rows}, need 0 <= num_rows <= {logits.shape[0]}")
    if indices.shape[0] < num_rows or indices.shape[1] != k:
        raise ValueError(
            f"raw_topk_indices: got shape {list(indices.shape)}, need {[num_rows, k]} "
            "(num_rows, topk_tokens), or more rows"
        )
    for name, given, own in (
        ("stride0", stride0, logits.stride(0)),
        ("stride1", stride1, logits.stride(1)),
    ):
        check_int(name, given)
        if given != own:
            raise ValueError(f"{name}: got {given}, need {own}, that of logits")
    return logits[:num_rows], indices[:num_rows]


def _flat(name: str, lengths: Tensor) -> Tensor:
    """A view where it can be one."""
    check_tensor(name, lengths)
    return lengths.reshape(-1)


def _ends(logits: Tensor, seq_lens: Tensor, next_n: int) -> tuple[Tensor, int]:
    """(lengths, rows per length): the rule for next_n rows applies to one length per request."""
    check_int("next_n", next_n)
    rows = logits.shape[0]
    if next_n < 1 or rows % next_n:
        raise ValueError(f"next_n: got {next_n}, need a divisor of the number of rows ({rows})")
    ends = _flat("seq_lens", seq_lens)
    if ends.shape[0] == rows and (seq_lens.dim() == 2 or next_n == 1):
        check_counts("seq_lens", ends, rows, "one per row", logits)
        return ends, 1
    check_counts("seq_lens", ends, rows // next_n, "one per request or per row", logits)
    return ends, next_n
