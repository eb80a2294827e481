# SPDX-License-Identifier: Apache-2.0
"""Random-weight models of every supported type, small enough to generate in a second."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
)

VOCABULARY = 97
TOP_K = 12

# Sixteen index heads: with few of them all ReLUs of a score are often zero, and equal scores at the
# K-th place leave torch.topk a choice.
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "index_topk": TOP_K,
    "index_n_heads": 16,
    "index_head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
    # Far above the usual 0.02, so that the attended keys decide the tokens.
    "initializer_range": 0.3,
}
_MLA: dict[str, Any] = {
    "intermediate_size": 64,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def _deepseek_v32(**changes: Any) -> torch.nn.Module:
    config = DeepseekV32Config(**{**_SHARED, **_MLA, "num_hidden_layers": 2, **changes})
    return DeepseekV32ForCausalLM(config)


def _glm_moe_dsa(**changes: Any) -> torch.nn.Module:
    """Three layers, of which the last shares the selection of the one before."""
    types = ["full", "full", "shared"]
    sizes = {"num_hidden_layers": 3, "indexer_types": types}
    return GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**{**_SHARED, **_MLA, **sizes, **changes}))


def _deepseek_v4(**changes: Any) -> torch.nn.Module:
    """One layer of each kind; only the compressed sparse one has an indexer."""
    types = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    sizes = {
        "num_hidden_layers": 3,
        "layer_types": types,
        "mlp_layer_types": ["moe"] * 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hc_mult": 2,
        "o_groups": 2,
        "o_lora_rank": 16,
        "sliding_window": 16,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    }
    return DeepseekV4ForCausalLM(DeepseekV4Config(**{**_SHARED, **sizes, **changes}))


MODELS = {
    "deepseek_v32": _deepseek_v32,
    "glm_moe_dsa": _glm_moe_dsa,
    "deepseek_v4": _deepseek_v4,
}
INDEXED_LAYERS = {"deepseek_v32": 2, "glm_moe_dsa": 2, "deepseek_v4": 1}


def tiny_model(
    name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name](**changes).eval().to(device=device, dtype=dtype)
    _randomise(model)
    return model


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Parameters that a fresh model leaves at zero or one take part, too.

    A padding token embedded as zero would have index scores of zero for every key.
    """
    generator = torch.Generator().manual_seed(1)
    embedding = model.get_input_embeddings().weight
    embedding[0] = torch.randn(embedding.shape[1], generator=generator).to(embedding)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.add_(noise.to(parameter))
