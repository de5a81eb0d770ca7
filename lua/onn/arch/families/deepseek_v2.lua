-- DeepSeek V2: V3's block with experts chosen by a softmax.
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "deepseek_v2",
  model_types = { "deepseek_v2" },
  base = "deepseek_v3",
  config = { method = "topk_method" },
  defaults = { experts = 64, expert_inner = 1407, shared_experts = 2, dense_layers = 0, expert_groups = 1, groups_per_token = 1, norm_topk = false,
    expert_scale = 1, method = "greedy" },
  derive = function(c, wrong)
    v3.derive(c)
    c.interleaved = true
    if c.method ~= "greedy" and c.method ~= "group_limited_greedy" then wrong[#wrong + 1] = "'topk_method' is not known" end
    local m = c.moe
    m.score, m.correction, m.group_score, m.normalize, m.normalize_eps = "softmax", false, 1, false, nil
    if c.method == "greedy" then m.groups = 1 end
  end,
}
