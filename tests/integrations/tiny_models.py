# SPDX-License-Identifier: Apache-2.0
"""Random-weight models of every supported type, small enough to generate in a second."""

from __future__ import annotations

from typing import Any

import torch
import transformers
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
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
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


def _axk2(**changes: Any) -> torch.nn.Module:
    config = transformers.AXK2Config(**{**_SHARED, **_MLA, "num_hidden_layers": 2, **changes})
    return transformers.AXK2ForCausalLM(config)


def _hy_v4(**changes: Any) -> torch.nn.Module:
    sizes = {"num_hidden_layers": 2, "hc_mult": 2}
    config = transformers.HYV4Config(**{**_SHARED, **_MLA, **sizes, **changes})
    return transformers.HYV4ForCausalLM(config)


def _dots3_note(**changes: Any) -> torch.nn.Module:
    sizes = {"num_hidden_layers": 2, "shared_experts_intermediate_size": 32}
    config = transformers.Dots3NoteTextConfig(**{**_SHARED, **_MLA, **sizes, **changes})
    return transformers.Dots3NoteForCausalLM(config)


def _mistral_large4(**changes: Any) -> torch.nn.Module:
    text = {**_SHARED, **_MLA, "num_hidden_layers": 2, **changes}
    vision = {"model_type": "pixtral", **_VISION, "head_dim": 16, "image_size": 16, "patch_size": 8}
    config = transformers.MistralLarge4Config(text_config=text, vision_config=vision)
    return transformers.MistralLarge4ForConditionalGeneration(config)


def _glm5_next(**changes: Any) -> torch.nn.Module:
    """It selects pools of two keys.

    Full attention is what its indexed layers are called in every release; the name that its
    configuration puts in place of it differs.
    """
    sizes = {
        "num_hidden_layers": 2,
        "qk_rope_head_dim": 0,
        "layer_types": ["full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"],
        "index_kpool": 2,
        "hc_mult": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    }
    text = {**_SHARED, **_MLA, **sizes, **changes}
    vision = {**_VISION, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Glm5NextConfig(text_config=text, vision_config=vision)
    return transformers.Glm5NextForConditionalGeneration(config)


def _minimax_m3_vl(**changes: Any) -> torch.nn.Module:
    """It selects blocks of four keys for each of two heads."""
    names = (
        "vocab_size", "hidden_size", "num_attention_heads", "num_experts_per_tok", "index_head_dim",
        "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
        "initializer_range",
    )  # fmt: skip
    sizes = {
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rotary_dim": 16,
        "intermediate_size": 32,
        "dense_intermediate_size": 64,
        "shared_intermediate_size": 32,
        "num_local_experts": 4,
        "index_n_heads": 2,
        "index_block_size": 4,
        "index_topk_blocks": 5,
        "layer_types": ["minimax_m3_sparse"] * 2,
    }
    shared = {name: _SHARED[name] for name in names}
    config = transformers.MiniMaxM3VLTextConfig(**{**shared, **sizes, **changes})
    return transformers.MiniMaxM3VLForCausalLM(config)


MODELS = {
    "deepseek_v32": _deepseek_v32,
    "glm_moe_dsa": _glm_moe_dsa,
    "deepseek_v4": _deepseek_v4,
}
# Those that came after the oldest supported transformers, and a class that tells whether they are
# in the installed one.
_LATER = {
    "axk2": (_axk2, "AXK2Config"),
    "dots3_note": (_dots3_note, "Dots3NoteTextConfig"),
    "glm5_next": (_glm5_next, "Glm5NextConfig"),
    "hy_v4": (_hy_v4, "HYV4Config"),
    "minimax_m3_vl": (_minimax_m3_vl, "MiniMaxM3VLTextConfig"),
    "mistral_large4": (_mistral_large4, "MistralLarge4Config"),
}
LATER_MODELS = {name: make for name, (make, _) in _LATER.items()}
ABSENT = [name for name, (_, config) in _LATER.items() if not hasattr(transformers, config)]
INDEXED_LAYERS = {"deepseek_v32": 2, "glm_moe_dsa": 2, "deepseek_v4": 1, **dict.fromkeys(_LATER, 2)}


def places(model: torch.nn.Module) -> int:
    """How many keys, pools or blocks one selection of the model takes."""
    config = model.config.get_text_config()
    if hasattr(config, "index_topk_blocks"):
        return config.index_topk_blocks
    return config.index_topk // getattr(config, "index_kpool", 1)


def tiny_model(
    name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> torch.nn.Module:
    torch.manual_seed(0)
    make = {**MODELS, **LATER_MODELS}[name]
    model = make(**changes).eval().to(device=device, dtype=dtype)
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
