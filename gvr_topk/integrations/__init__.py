# SPDX-License-Identifier: Apache-2.0
"""Drop-in selections for other projects, each with the argument names it has there.

transformers   enable(model): the sparse-attention models of Hugging Face transformers
vllm           the indexer's Top-K operators and SparseIndexerTopk
sglang         fast_topk_v2, its fused transforms, and the paged and ragged transforms v2
flashinfer     top_k, top_k_varlen, top_k_page_table_transform, top_k_ragged_transform

None of them imports its project before it has to. docs/integration.md shows the lines to change.
"""
