#!/usr/bin/env python3
"""Tiny random checkpoints of every model family that transformers has, and what it computes from them, to compare onn with.

    python3 make_families.py SHARED OUT [family ...]    write OUT/<family>/{config.json,model.safetensors,golden.safetensors}
    python3 make_families.py --list SHARED              names

SHARED is the folder with tools/make_golden.py, whose classes do the work; here are only the configurations. A family is a model type,
with sizes made small by the names that its configuration has; VARIANTS are switches of families. What cannot be made is told, not hidden.
"""
import importlib.util, json, sys, traceback, warnings
from pathlib import Path

warnings.filterwarnings("ignore")
SIZES = dict(
    vocab_size=112, hidden_size=32, n_embd=32, d_model=32, num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, num_attention_heads=4,
    n_head=4, n_heads=4, num_heads=4, num_key_value_heads=2, num_kv_heads=2, intermediate_size=64, ffn_dim=64, n_inner=None,
    ffn_hidden_size=64, max_position_embeddings=64, n_positions=64, max_seq_len=64, head_dim=16, sliding_window=8, window_size=8,
    moe_intermediate_size=24, num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, top_k=2, n_shared_experts=1,
    shared_expert_intermediate_size=40, shared_intermediate_size=40, n_group=2, topk_group=1, first_k_dense_replace=1,
    q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, word_embed_proj_dim=32,
    state_size=8, mamba_d_state=8, mamba_d_head=16, mamba_n_heads=4, mamba_n_groups=2, mamba_chunk_size=8, chunk_size=8, time_step_rank=4,
    mamba_d_ssm=64, mamba_expand=2, expand=2, conv_kernel=4, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=8, rotary_dim=8, decoder_layers=2, encoder_layers=2, decoder_attention_heads=4, encoder_attention_heads=4,
    decoder_ffn_dim=64, encoder_ffn_dim=64, embedding_size=32, d_ff=64, dff=64, d_kv=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    num_decoder_layers=2, n_groups=2, ffn_config=None, hidden_size_per_layer_input=8, vocab_size_per_layer_input=112)
STD = 0.15
VARIANTS = {
    "llama_linear": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))),
    "llama_dynamic": ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0), max_position_embeddings=8)),
    "llama_yarn": ("llama", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=16))),
    "llama_mlp_bias": ("llama", dict(mlp_bias=True)),
    "phi3_longrope": ("phi3", dict(original_max_position_embeddings=16, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 8, long_factor=[1.5] * 8, original_max_position_embeddings=16))),
    "qwen2_window": ("qwen2", dict(use_sliding_window=True, max_window_layers=1)),
    "phi_qk": ("phi", dict(qk_layernorm=True)),
    "stablelm_parallel": ("stablelm", dict(use_parallel_residual=True, use_qkv_bias=True)),
    "stablelm_qk": ("stablelm", dict(qk_layernorm=True)),
    "olmo_clip": ("olmo", dict(clip_qkv=0.5)),
    "cohere_qk": ("cohere", dict(use_qk_norm=True)),
    "gpt_neox_sequential": ("gpt_neox", dict(use_parallel_residual=False)),
    "gpt_neox_no_bias": ("gpt_neox", dict(attention_bias=False)),
    "opt_post": ("opt", dict(do_layer_norm_before=False, word_embed_proj_dim=16)),
    "opt_no_bias": ("opt", dict(enable_bias=False, layer_norm_elementwise_affine=False)),
    "falcon_new": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon_rw": ("falcon", dict(num_kv_heads=4, alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    "falcon_mq_sequential": ("falcon", dict(parallel_attn=False)),
    "gpt2_scaled": ("gpt2", dict(scale_attn_by_inverse_layer_idx=True)),
    "gpt_bigcode_mha": ("gpt_bigcode", dict(multi_query=False)),
    "granite_scaled": ("granite", dict(embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0)),
    "qwen2_moe_dense": ("qwen2_moe", dict(decoder_sparse_step=2)),
    "qwen3_moe_norm": ("qwen3_moe", dict(norm_topk_prob=True)),
    "qwen3_moe_raw": ("qwen3_moe", dict(norm_topk_prob=False, mlp_only_layers=[0])),
    "olmoe_norm": ("olmoe", dict(norm_topk_prob=True)),
    "deepseek_v2_no_q": ("deepseek_v2", dict(q_lora_rank=None)),
    "gemma3_long": ("gemma3_text", dict(num_hidden_layers=7)),
    "smollm3_long": ("smollm3", dict(num_hidden_layers=5)),
    "cohere2_long": ("cohere2", dict(num_hidden_layers=5)),
    "exaone4_long": ("exaone4", dict(num_hidden_layers=5)),
    "gpt_neo_global": ("gpt_neo", dict(attention_types=[[["global"], 2]])),
    "bert_relu": ("bert", dict(hidden_act="relu")),
    "granite_swa_thetas": ("granite_swa", dict(num_hidden_layers=4, sliding_window=4, layer_rope_theta=[10000.0, 500.0, 0, 500.0],
        embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0)),
    "hyperclovax_plain": ("hyperclovax", dict(use_post_norm=False, logits_scaling=0.5, residual_multiplier=0.5, attention_multiplier=0.2)),
    "internlm3_bias": ("internlm3", dict(attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="dynamic", factor=6.0, rope_theta=50000.0))),
    "exaone_moe_long": ("exaone_moe", dict(num_hidden_layers=5, sliding_window=4)),
    "cohere2_moe_sigmoid": ("cohere2_moe", dict(num_hidden_layers=5, num_shared_experts=2, expert_selection_fn="sigmoid",
        first_k_dense_replace=1, prefix_dense_intermediate_size=48, sliding_window=4)),
    "cohere2_moe_sum": ("cohere2_moe", dict(num_shared_experts=1, shared_expert_combination_strategy="sum", rms_norm_eps=1e-5,
        norm_topk_prob=False, expert_selection_fn="sigmoid", layer_types=["full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse"], prefix_dense_sliding_window_pattern=2, prefix_dense_intermediate_size=48)),
    "laguna_elements": ("laguna", dict(gating="per-element", num_hidden_layers=3, sliding_window=4, moe_routed_scaling_factor=2.5,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"])),
    "llama4_text_long": ("llama4_text", dict(num_hidden_layers=4, attention_chunk_size=5, floor_scale=3, interleave_moe_layer_step=2,
        intermediate_size_mlp=48, num_experts_per_tok=1)),
    "llama4_text_plain": ("llama4_text", dict(use_qk_norm=False, attn_temperature_tuning=False, attention_bias=True, no_rope_layers=[0, 1],
        attention_chunk_size=7, intermediate_size_mlp=48)),
    "ministral3_long": ("ministral3", dict(sliding_window=None, rope_parameters=dict(rope_type="yarn", rope_theta=1e6, factor=4.0,
        original_max_position_embeddings=4, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1))),
    "phimoe_long": ("phimoe", dict(lm_head_bias=True, attention_bias=True, router_jitter_noise=0.3, sliding_window=None,
        max_position_embeddings=64, rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 4,
        long_factor=[1.0] * 4, short_mscale=1.1, long_mscale=1.2, original_max_position_embeddings=8))),
    "deepseek_v3_eps": ("deepseek_v3", dict(rms_norm_eps=1e-2, attention_bias=True, rope_interleave=False, rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0))),
    "minicpm3_eps": ("minicpm3", dict(rms_norm_eps=1e-2)),
    "laguna_heads": ("laguna", dict(num_attention_heads_per_layer=[4, 2, 6], num_hidden_layers=3, sliding_window=4, attention_bias=True,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"])),
    "mimo_v2_flash_long": ("mimo_v2_flash", dict(num_hidden_layers=4, sliding_window=4, attention_bias=True, routed_scaling_factor=None,
        v_head_dim=8, layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"])),
    "gemma4_dense": ("gemma4_text", dict(num_hidden_layers=3, hidden_size_per_layer_input=0, global_head_dim=32, final_logit_softcapping=30.0,
        sliding_window=4, layer_types=["sliding_attention", "full_attention", "full_attention"])),
    "gemma4_shared": ("gemma4_text", dict(num_hidden_layers=3, hidden_size_per_layer_input=0, global_head_dim=32, attention_k_eq_v=True,
        num_global_key_value_heads=1, layer_types=["full_attention", "sliding_attention", "full_attention"])),
    "gemma4_experts": ("gemma4_text", dict(num_hidden_layers=2, hidden_size_per_layer_input=0, global_head_dim=32, attention_k_eq_v=True,
        num_global_key_value_heads=2, enable_moe_block=True, top_k_experts=2)),
    "beam_long": ("beam", dict(num_hidden_layers=3, sliding_window=4, mlp_layer_types=["dense", "sparse", "sparse"],
        layer_types=["full_attention", "sliding_attention", "full_attention"])),
    "jetmoe_eps": ("jetmoe", dict(rms_norm_eps=1e-2, num_experts_per_tok=3, num_attention_heads=6)),
    "llama_tied": ("llama", dict(tie_word_embeddings=True, num_key_value_heads=1, head_dim=12, attention_bias=True)),
    "llama_llama3": ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama_llama3_old": ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=16))),
    "mistral_old": ("mistral", dict(num_key_value_heads=1, sliding_window=4, rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "mistral_full": ("mistral", dict(sliding_window=None)),
    "qwen2_yarn_old": ("qwen2", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=500.0,
        original_max_position_embeddings=16))),
    "qwen3_bias": ("qwen3", dict(attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1)),
    "gemma2_old": ("gemma2", dict(num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=24, attn_logit_softcapping=20.0,
        rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "gemma3_linear": ("gemma3_text", dict(num_hidden_layers=7, sliding_window=4, query_pre_attn_scalar=24, rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6), sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
    "deepseek_v2_yarn": ("deepseek_v2", dict(topk_method="group_limited_greedy", routed_scaling_factor=2.0, n_shared_experts=2,
        rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=16, mscale=0.7,
        mscale_all_dim=0.7, beta_fast=32, beta_slow=1))),
    "deepseek_v3_no_q": ("deepseek_v3", dict(q_lora_rank=None, norm_topk_prob=False, n_shared_experts=2, first_k_dense_replace=0)),
    "gpt_oss_long": ("gpt_oss", dict(num_hidden_layers=3, sliding_window=4)),
    "phi3_window": ("phi3", dict(sliding_window=4, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "gpt_neox_linear_old": ("gpt_neox", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0,
        partial_rotary_factor=0.5))),
    "mixtral_window": ("mixtral", dict(sliding_window=4, num_key_value_heads=1)),
    "qwen3_moe_window": ("qwen3_moe", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, attention_bias=True)),
    "glm4_moe_plain": ("glm4_moe", dict(use_qk_norm=False, attention_bias=True, n_shared_experts=2, routed_scaling_factor=2.5)),
    "olmo2_bias": ("olmo2", dict(attention_bias=True, num_key_value_heads=1)),
    "starcoder2_plain": ("starcoder2", dict(use_bias=False, sliding_window=4)),
    "granitemoe_scaled": ("granitemoe", dict(embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0,
        tie_word_embeddings=True)),
    "seed_oss_bias": ("seed_oss", dict(attention_bias=True, attention_out_bias=True, mlp_bias=True)),
    "smollm3_window": ("smollm3", dict(num_hidden_layers=4, use_sliding_window=True, sliding_window=4, no_rope_layers=[1, 0, 1, 0],
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"])),
    "afmoe_mup": ("afmoe", dict(mup_enabled=True, num_hidden_layers=5, sliding_window=4, num_dense_layers=1, route_scale=2.0)),
    "nemotron_share": ("nemotron", dict(num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
        partial_rotary_factor=0.5))),
    "stablelm_old": ("stablelm", dict(rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))),
    "ernie4_5_moe_range": ("ernie4_5_moe", dict(num_hidden_layers=4, moe_layer_start_index=1, moe_layer_end_index=2)),
    "exaone4_full": ("exaone4", dict(sliding_window=None, layer_types=["full_attention", "full_attention"])),
    "qwen2_moe_window": ("qwen2_moe", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, qkv_bias=False,
        mlp_only_layers=[1], num_hidden_layers=3)),
    "qwen3_window": ("qwen3", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "minicpm3_yarn": ("minicpm3", dict(attention_bias=True, rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 4,
        long_factor=[1.5] * 4, original_max_position_embeddings=8))),
    "gpt_oss_yarn": ("gpt_oss", dict(rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0,
        truncate=False, original_max_position_embeddings=16), attention_bias=False)),
    "phi3_longrope_short": ("phi3", dict(original_max_position_embeddings=32, rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
        short_factor=[1.25] * 4, long_factor=[1.5] * 4, original_max_position_embeddings=32))),
    "glm_bias": ("glm", dict(attention_bias=True, num_key_value_heads=1)),
    "glm4_bias": ("glm4", dict(attention_bias=True, num_key_value_heads=1)),
    "mellum_long": ("mellum", dict(num_hidden_layers=5, sliding_window=4)),
    "ministral_types": ("ministral", dict(num_hidden_layers=3, sliding_window=4, layer_types=["sliding_attention", "full_attention",
        "sliding_attention"])),
    "vaultgemma_long": ("vaultgemma", dict(num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=24)),
    "gemma_kv1": ("gemma", dict(num_key_value_heads=1)),
    "olmo3_long": ("olmo3", dict(num_hidden_layers=5, sliding_window=4, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0,
        original_max_position_embeddings=16))),
    "hunyuan_dynamic": ("hunyuan_v1_dense", dict(attention_bias=True, num_key_value_heads=1)),
    "arcee_bias": ("arcee", dict(attention_bias=True, mlp_bias=True)),
    "apertus_kv1": ("apertus", dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "opt_350m": ("opt", dict(do_layer_norm_before=False, word_embed_proj_dim=16, enable_bias=True, tie_word_embeddings=True)),
    "codegen_heads": ("codegen", dict(n_head=8, rotary_dim=4)),
    "gptj_share": ("gptj", dict(rotary_dim=4)),
    "cohere2_scaled": ("cohere2", dict(num_hidden_layers=4, sliding_window=4, attention_bias=True, logit_scale=0.5)),
    "flex_olmo_norm": ("flex_olmo", dict(norm_topk_prob=True, num_key_value_heads=1)),
    "hyperclovax_old": ("hyperclovax", dict(num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "flint_sparse": ("flint", dict(num_hidden_layers=4, sliding_window=4, mlp_only_layers=[0], norm_topk_prob=False)),
    "hy_v3_bias": ("hy_v3", dict(attention_bias=True, num_shared_experts=2, num_key_value_heads=1)),
    "axk1_dense": ("axk1", dict(num_hidden_layers=3, attention_bias=True, mlp_layer_types=["dense", "sparse", "dense"])),
    "xglm_plain": ("xglm", dict(scale_embedding=False, activation_function="relu", pad_token_id=1)),
    "diffllama_bias": ("diffllama", dict(attention_bias=True, num_hidden_layers=3)),
    "dots1_normal": ("dots1", dict(norm_topk_prob=True, n_shared_experts=2, attention_bias=True, routed_scaling_factor=2.5,
        layer_types=["sliding_attention", "full_attention"])),
    "lfm2_plain": ("lfm2", dict(block_auto_adjust_ff_dim=False, conv_bias=True)),
    "bamba_bias": ("bamba", dict(mamba_proj_bias=True, attention_bias=True, mlp_bias=True, time_step_limit=(0.2, 0.9))),
    "granitemoehybrid_dense": ("granitemoehybrid", dict(num_local_experts=0, position_embedding_type="rope", embedding_multiplier=3.0,
                                                       residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0)),
    "falcon_h1_scaled": ("falcon_h1", dict(
        mamba_rms_norm=True, projectors_bias=True, lm_head_multiplier=0.5, embedding_multiplier=2.0, mlp_multipliers=[0.7, 1.3],
        key_multiplier=0.6, attention_out_multiplier=1.4, attention_in_multiplier=0.8, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7],
        ssm_in_multiplier=1.3, ssm_out_multiplier=0.6)),
    "falcon_h1_norm_after": ("falcon_h1", dict(mamba_rms_norm=True, mamba_norm_before_gate=False, mamba_proj_bias=True)),
    "kimi_linear_q": ("kimi_linear", dict(q_lora_rank=24)),
    "minimax_scaled": ("minimax", dict(full_attn_alpha_factor=1.5, full_attn_beta_factor=0.7, linear_attn_alpha_factor=1.3,
                                       linear_attn_beta_factor=0.8, mlp_alpha_factor=1.2, mlp_beta_factor=0.9)),
    "jamba_dense": ("jamba", dict(num_experts=1, num_experts_per_tok=1)),
}
FIXED = {"gpt_neo": dict(attention_types=[[["global", "local"], 1]]), "mpt": dict(), "bloom": dict(),
         "helium": dict(head_dim=8), "deepseek_v2": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4), "deepseek_v3": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4),
         # loading with a padding token empties its row of the embedding
         "youtu": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4, pad_token_id=None), "minicpm3": dict(num_key_value_heads=4, head_dim=8), "nemotron": dict(num_key_value_heads=2),
         **{name: dict(num_key_value_heads=4, head_dim=8) for name in ("glm4_moe_lite", "longcat_flash", "sarvam_mla", "axk1", "axk2",
            "glm_moe_dsa")},
         "mimo_v2_flash": dict(head_dim=24),
         "gemma3n_text": dict(num_kv_shared_layers=0, intermediate_size=64),
         **{name: dict(layer_types=["linear_attention", "full_attention"]) for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
         "kimi_linear": dict(num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], linear_head_dim=8,
                             linear_num_heads=3, num_key_value_heads=4, mlp_layer_types=["dense", "sparse", "sparse"], q_lora_rank=None),
         "lfm3": dict(num_hidden_layers=3, layer_types=["conv", "sliding_attention", "full_attention"]),
         "lara_mini": dict(num_hidden_layers=3, layer_types=["linear_attention", "sliding_attention", "full_attention"]),
         "lfm2": dict(layer_types=["conv", "full_attention"]),
         "lfm2_moe": dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], num_dense_layers=1, num_experts_per_tok=2),
         "bamba": dict(attn_layer_indices=[1]), "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"]),
         "jamba": dict(num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=3, expert_layer_offset=1),
         "nemotron_h": dict(mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, moe_shared_expert_intermediate_size=40,
                            layers_block_type=["linear_attention", "moe", "full_attention", "mlp"]),
         "gpt_neox": dict(rotary_pct=0.5), "persimmon": dict(), "opt": dict(word_embed_proj_dim=32)}


def load_tools(shared):
    spec = importlib.util.spec_from_file_location("make_golden", Path(shared) / "tools/make_golden.py")
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    return tools


def small(transformers, model_type, changes):
    """The configuration's keyword arguments for a tiny model of this type."""
    cls = type(transformers.AutoConfig.for_model(model_type))
    known = cls().to_dict()
    sizes = {k: v for k, v in SIZES.items() if k in known or k in getattr(cls, "attribute_map", {})}
    sizes = {k: v for k, v in sizes.items() if getattr(cls, "attribute_map", {}).get(k) not in sizes}
    for key, value in known.items():                                    # per-layer lists follow the number of layers
        if isinstance(value, list) and len(value) > 2 and key not in ("layer_types",):
            sizes.setdefault(key, None) if key.endswith("layers") else None
    if known.get("num_key_value_heads") is None:
        sizes.pop("num_key_value_heads", None)
    return {**sizes, **FIXED.get(model_type, {}), **changes}


def make_old(path):
    """Writes the rotary embedding as configs had it before transformers 5: rope_theta, rope_scaling and the share under their own keys."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    share = rope.pop("partial_rotary_factor", None)
    if share is not None:
        config["partial_rotary_factor"] = share
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"], config["rotary_pct"] = config.pop("rope_theta"), config.pop("partial_rotary_factor")
    path.write_text(json.dumps(config, indent=2) + "\n")


def make(tools, name, family, out):
    """One draw, in f32 alone: what is compared is how far onn is from it, in 1e-4 of the largest value."""
    import torch
    from safetensors.torch import save_file
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = family.build().eval()
    decays = {n: b.clone() for n, b in model.named_buffers() if n.endswith(("slope_rate", "_decay"))}  # follow from the layer, never trained
    family.fill(model, tools.seeded(name, "weights"))
    for buffer, value in model.named_buffers():                         # xIELU's guard is a constant, not learned
        if buffer.endswith("act_fn.eps"):
            value.fill_(-1e-6)
        if buffer in decays:
            value.copy_(decays[buffer])
    family.save(model, folder)
    if name.endswith("_old"):
        make_old(folder / "config.json")
    inputs = family.inputs(model, tools.seeded(name, "inputs"))
    if any("experts" in n for n, _ in model.named_modules()):           # as the shared references: adapters on the attention only
        last = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "attn" in n + "attention"}
        family.lora = sorted(last & {"q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
                                     "query_key_value", "dense", "qkv_proj"})
    if name.split("_")[0] == "falcon" and "out_proj" in {n.split(".")[-1] for n, _ in model.named_modules()}:   # PEFT has none on out_proj here
        family.lora = ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    try:
        results = tools.reference(family, folder, inputs, name, torch.float32)
    except (ValueError, AttributeError) as e:                           # PEFT refuses some modules; some get no gradient
        print(name, "without adapters:", str(e).splitlines()[0][:100])
        family.lora = None
        results = tools.reference(family, folder, inputs, name, torch.float32)
    margin = results.pop("greedy_margin", 1)
    if margin < 1e-3:
        results.pop("greedy")                                           # hangs on rounding
    save_file({k: v.detach().contiguous().clone() for k, v in {**inputs, **results}.items()}, folder / "golden.safetensors",
              {"family": name, "kind": family.kind})


def main():
    listing = "--list" in sys.argv
    args = [a for a in sys.argv[1:] if a != "--list"]
    tools = load_tools(args[0])
    import torch, transformers
    from transformers.models.auto import modeling_auto as auto
    torch.set_num_threads(1)
    families = {name: (name, {}) for name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    masked = {name for name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    families.update({name: (name, {}) for name in masked})
    families.update(VARIANTS)
    if listing:
        print("\n".join(sorted(families)))
        return
    out, wanted = Path(args[1]), args[2:] or sorted(families)
    for name in wanted:
        model_type, changes = families[name]
        try:
            config = small(transformers, model_type, changes)
            kind = tools.MaskedLM if model_type in masked and model_type not in ("t5",) else tools.Decoder
            family = kind(model_type, std=STD, **config)
            make(tools, name, family, out)
            print(name, "made", flush=True)
        except Exception as e:                                          # a model that cannot be made this small, or needs other inputs
            print(name, "not made:", type(e).__name__, str(e).splitlines()[0][:160] if str(e) else "", flush=True)
            if "-v" in sys.argv:
                traceback.print_exc()


main()
