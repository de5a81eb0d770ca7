-- DeepSeek V3: latent attention, and experts chosen by sigmoids within the best groups, after some dense layers.
local sizes = require "onn.arch.sizes"

return {
  name = "deepseek_v3",
  model_types = { "deepseek_v3" },
  base = "llama",
  config = {
    experts = "n_routed_experts", experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_experts = "n_shared_experts", dense_layers = "first_k_dense_replace", expert_groups = "n_group", groups_per_token = "topk_group",
    norm_topk = "norm_topk_prob", expert_scale = "routed_scaling_factor", q_rank = "q_lora_rank", kv_rank = "kv_lora_rank",
    nope_size = "qk_nope_head_dim", rope_size = "qk_rope_head_dim", value_size = "v_head_dim", interleave = "rope_interleave",
  },
  defaults = { experts = 256, experts_per_token = 8, expert_inner = 2048, shared_experts = 1, dense_layers = 3, expert_groups = 8,
    groups_per_token = 4, norm_topk = true, expert_scale = 2.5, kv_rank = 512, nope_size = 128, rope_size = 64, value_size = 128,
    interleave = true, positions = 4096 },
  absent = { q_lora_rank = 1536 },
  only = { moe_layer_freq = function(v) return v == nil or v == 1 end },
  bias = function(c) return { a = c.attention_bias, o = c.attention_bias } end,
  derive = function(c)
    c.interleaved, c.head_size = c.interleave, c.nope_size + c.rope_size
    c.scale_by_yarn, c.latent_eps = true, 1e-6 -- whatever rms_norm_eps is
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = c.norm_topk,
      normalize_eps = 1e-20, scale = c.expert_scale, groups = c.expert_groups, per_token_groups = c.groups_per_token, group_score = 2,
      correction = true, shared = c.shared_experts * c.expert_inner }
    c.mixers = sizes.each_layer(c, function() return "latent_attention" end)
    c.feeds = sizes.each_layer(c, function(layer)
      if c.mlp_types then return c.mlp_types[layer + 1] == "sparse" and "moe" or "mlp" end
      return layer >= c.dense_layers and "moe" or "mlp"
    end)
  end,
  names = {
    q = "self_attn.q_proj", q_a = "self_attn.q_a_proj", q_a_norm = "self_attn.q_a_layernorm", q_b = "self_attn.q_b_proj",
    kv_a = "self_attn.kv_a_proj_with_mqa", kv_a_norm = "self_attn.kv_a_layernorm", kv_b = "self_attn.kv_b_proj",
    router = "mlp.gate", correction = "mlp.gate.e_score_correction_bias", expert = "mlp.experts.%d.", expert_gate = "gate_proj",
    expert_up = "up_proj", expert_down = "down_proj", shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj",
    shared_down = "mlp.shared_experts.down_proj",
  },
}
