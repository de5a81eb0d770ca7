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
    decoder_ffn_dim=64, encoder_ffn_dim=64, embedding_size=32, d_ff=64, d_kv=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
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
}
FIXED = {"gpt_neo": dict(attention_types=[[["global", "local"], 1]]), "mpt": dict(), "bloom": dict(),
         "helium": dict(head_dim=8), "deepseek_v2": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4), "deepseek_v3": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4),
         "youtu": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4), "minicpm3": dict(num_key_value_heads=4, head_dim=8, n_routed_experts=4), "nemotron": dict(num_key_value_heads=2),
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


def make(tools, name, family, out):
    """One draw, in f32 alone: what is compared is how far onn is from it, in 1e-4 of the largest value."""
    import torch
    from safetensors.torch import save_file
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = family.build().eval()
    family.fill(model, tools.seeded(name, "weights"))
    family.save(model, folder)
    inputs = family.inputs(model, tools.seeded(name, "inputs"))
    if any("experts" in n for n, _ in model.named_modules()):           # as the shared references: adapters on the attention only
        last = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "attn" in n + "attention"}
        family.lora = sorted(last & {"q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
                                     "query_key_value", "dense", "qkv_proj"})
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
