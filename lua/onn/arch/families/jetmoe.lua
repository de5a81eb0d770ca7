-- JetMoE: experts in the feed-forward part, with a bias on their sum, and in the attention.
local sizes = require "onn.arch.sizes"

return {
  name = "jetmoe",
  model_types = { "jetmoe" },
  base = "llama",
  config = { head_size = "kv_channels", activation = "activation_function", experts = "num_local_experts",
    experts_per_token = "num_experts_per_tok", attention_bias = "none", mlp_bias = "none" },
  defaults = { kv_heads = 16, head_size = 128, experts = 8, experts_per_token = 2, tied = true, positions = 4096,
    heads = function(c) return c.kv_heads * c.experts_per_token end },
  derive = function(c, wrong)
    if c.heads ~= c.kv_heads * c.experts_per_token then
      wrong[#wrong + 1] = ("'num_attention_heads' %d is not 'num_key_value_heads' %d times 'num_experts_per_tok' %d"):format(c.heads, c.kv_heads,
        c.experts_per_token)
    end
    c.final_eps, c.eps = c.eps, 1e-6 -- the config's is of the last norm alone
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "logits", stacked = true, out_bias = true }
    c.mixers = sizes.each_layer(c, function() return "expert_attention" end)
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = {
    query_router = "self_attention.experts.router.layer", queries = "self_attention.experts.input_linear.weight", kv = "self_attention.kv_proj",
    outputs = "self_attention.experts.output_linear.weight", o_bias = "self_attention.experts.bias", router = "mlp.router.layer",
    experts_gate_up = "mlp.input_linear.weight", experts_down = "mlp.output_linear.weight", moe_bias = "mlp.bias",
  },
}
