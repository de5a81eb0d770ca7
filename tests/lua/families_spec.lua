-- What configs of decoder families come to, where a mistake would be silent: windows, scales, angles, heads by layer; and how experts are chosen.
local arch = require "onn.arch"
local moe = require "onn.arch.parts.moe"
local query_scales = require "onn.nn.query_scales"
local rope = require "onn.nn.rope"
local sinusoids = require "onn.nn.sinusoids"
local tensors = require "onn.core.tensor"

local function sizes(config)
  local base = { hidden_size = 32, intermediate_size = 64, num_hidden_layers = 3, num_attention_heads = 4, num_key_value_heads = 2, vocab_size = 16 }
  for k, v in pairs(config) do base[k] = v end
  local described, wrong = arch.describe(base)
  return described and described.sizes, wrong and table.concat(wrong, "\n")
end

describe("decoder families", function()
  it("gives Qwen3-MoE's window to every layer", function()
    local c = assert(sizes { model_type = "qwen3_moe", use_sliding_window = true, sliding_window = 4, max_window_layers = 2 })
    assert.same({ 4, 4, 4 }, { c.windows[0], c.windows[1], c.windows[2] })
  end)

  it("scales DeepSeek V2's scores by YaRN's factor", function()
    local rotary = { rope_type = "yarn", factor = 4, rope_theta = 10000, original_max_position_embeddings = 16, mscale = 0.7, mscale_all_dim = 0.7 }
    local c = assert(sizes { model_type = "deepseek_v2", qk_nope_head_dim = 16, qk_rope_head_dim = 8, v_head_dim = 16, rope_parameters = rotary,
      num_key_value_heads = 4 })
    assert.near((0.07 * math.log(4) + 1) ^ 2 / math.sqrt(24), c.scales[0], 1e-12)
  end)

  it("keeps the norms inside of latent attention at their own epsilon", function()
    local c = assert(sizes { model_type = "glm4_moe_lite", rms_norm_eps = 1e-3, num_key_value_heads = 4 })
    assert.same({ 1e-3, 1e-6 }, { c.eps, c.latent_eps })
  end)

  it("reads a base of the angles for each layer", function()
    local config = { model_type = "granite_swa", layer_rope_theta = { 10000, 0, 500 } }
    local c = assert(sizes(config))
    assert.same({ true, false, true }, { c.rotated[0], c.rotated[1], c.rotated[2] })
    assert.same({ 10000, 500, false, true }, { c.rope.theta, c.rope_of_windows.theta, c.local_rope[0], c.local_rope[2] })
    config.layer_rope_theta = { 1, 2, 3 }
    assert.matches("more than two bases", select(2, sizes(config)), 1, true)
    config.layer_rope_theta = { 1, "x", 3 }
    assert.matches("'layer_rope_theta' should be a number", select(2, sizes(config)), 1, true)
  end)

  it("lets layers have heads of their own, and refuses what does not fit", function()
    local config = { model_type = "laguna", num_attention_heads_per_layer = { 4, 2, 6 }, head_dim = 8,
      rope_parameters = { rope_type = "default", rope_theta = 10000 } }
    local c = assert(sizes(config))
    assert.same({ 4, 2, 6 }, { c.shapes[0].heads, c.shapes[1].heads, c.shapes[2].heads })
    config.num_attention_heads_per_layer = { 4, 3, 6 }
    assert.matches("'num_attention_heads_per_layer': 3 is no multiple of 2", select(2, sizes(config)), 1, true)
  end)

  it("refuses Gemma 4's inputs of each layer, also where the config leaves them to the default", function()
    local _, wrong = sizes { model_type = "gemma4_text" }
    assert.matches("'hidden_size_per_layer_input' = 256 is not supported", wrong, 1, true)
  end)
end)

describe("what depends on positions", function()
  it("lets queries grow", function()
    local rows = query_scales.new({ floor = 4, by = 0.1, from = 0 }):upto(9):totable()
    assert.near(1, rows[4][1], 1e-7)
    assert.near(1 + 0.1 * math.log(3), rows[9][1], 1e-7)
  end)

  it("makes sines and cosines, one row empty", function()
    local rows = sinusoids.new({ steps = 1, offset = 2, empty = 3 }, 4):upto(3):totable()
    assert.near(math.sin(2), rows[1][1], 1e-7)
    assert.near(math.cos(2 / 10000), rows[1][4], 1e-7)
    assert.same({ 0, 0, 0, 0 }, rows[2])
  end)

  it("turns the first share of a head at the whole head's speeds", function()
    local p = assert(rope.read({ rope_parameters = { rope_type = "proportional", partial_rotary_factor = 0.5, rope_theta = 100 } }, 8))
    local cos = rope.new(p):upto(2).cos:totable()[2]
    assert.near(math.cos(100 ^ -0.25), cos[2], 1e-6)
    assert.same({ 1, 1 }, { cos[3], cos[4] })
  end)
end)

describe("choosing experts", function()
  it("never leaves the best groups, however low the scores inside are", function()
    local c = { moe = { experts = 4, per_token = 2, score = "sigmoid", groups = 2, per_token_groups = 1, group_score = 2 } }
    local w = { router = tensors.from_table({ { 0 }, { 0 }, { 0 }, { 0 } }, "f32"), correction = tensors.from_table({ -1, -1, -0.9, -1.2 }, "f32") }
    local values, rows = moe.route(c, w, tensors.from_table({ { 1 } }, "f32"))
    assert.same({ { 0, 1 } }, rows)
    assert.same({ { 0.5, 0.5 } }, values:totable())
  end)

  it("weighs the two best among their rivals", function()
    local c = { moe = { experts = 3, per_token = 2, score = "rivals", margin = 0.5 } }
    local w = { router = tensors.from_table({ { 2 }, { 1.5 }, { 0.1 } }, "f32") }
    local values, rows = moe.route(c, w, tensors.from_table({ { 1 } }, "f32"))
    assert.same({ { 0, 1 } }, rows)
    assert.near(1 / (1 + math.exp(-0.5)), values:totable()[1][1], 1e-6)
    assert.near(1, values:totable()[1][2], 1e-6)
  end)
end)
