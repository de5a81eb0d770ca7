-- Keys of a config that a family does not read: refused by name where they may change the arithmetic.
local arch = require "onn.arch"
local json = require "onn.core.json"
local keys = require "onn.arch.keys"
local program = require "onn.core.program"
local support = require "tests.support"

local sound = { model_type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 4,
  num_key_value_heads = 2, vocab_size = 100, max_position_embeddings = 64, hidden_act = "silu", rms_norm_eps = 1e-5 }

local function with(changes)
  local config = {}
  for k, v in pairs(sound) do config[k] = v end
  for k, v in pairs(changes) do config[k] = v end
  return config
end

local function refused(changes, pattern)
  local described, wrong = arch.describe(with(changes))
  assert.is_nil(described, json.encode(changes))
  assert.matches(pattern, table.concat(wrong, "; "))
  return wrong
end

describe("a key that no family reads", function()
  it("is refused by name where it says something", function()
    refused({ foo = 3 }, "^config.json: 'foo' = 3 is not known for llama; it may change the arithmetic %(%-%-set foo=null runs without it%)$")
    refused({ logits_soft_cap = 30 }, "'logits_soft_cap' = 30")
    refused({ attn_logit_softcapping = 50 }, "'attn_logit_softcapping' = 50")
    refused({ use_parallel_residual = false }, "use_parallel_residual")
    refused({ embedding_multiplier = 12 }, "'embedding_multiplier' = 12")
    refused({ quantization_config = { quant_method = "fp8" } }, "'quantization_config' = an object")
    refused({ norm_topk_prob = false, foo = "x", bar = { 1 } }, "'bar' = a list.*'foo' = 'x'.*'norm_topk_prob' = false")
    assert.equal(2, #refused({ a = 1, b = 2 }, "'a' = 1"))
  end)

  it("is let pass where it says nothing, or nothing of the arithmetic", function()
    for _, neutral in ipairs { json.null, false, 0, "", {} } do assert.is_table(arch.describe(with { foo = neutral })) end
    assert.is_table(arch.describe(with { embedding_multiplier = 1, logits_scaling = 1, attention_dropout = 0.5, eos_token_id = { 1, 2 },
      torch_dtype = "bfloat16", initializer_range = 0.02, transformers_version = "5.0", pretraining_tp = 2, use_cache = true }))
  end)

  it("of the rotary embedding is refused too", function()
    refused({ rope_scaling = { type = "linear", factor = 2, twist = 5 } }, "'rope_scaling.twist' = 5 is not known")
    refused({ rope_parameters = { rope_type = "default", rope_theta = 1e4, short_mscale = 1.2 } }, "'rope_parameters.short_mscale' = 1.2")
    assert.is_table(arch.describe(with { rope_scaling = { type = "linear", factor = 2, mrope_section = { 1, 1, 2 } } }))
  end)

  it("is told by what is asked for", function()
    local read = {}
    local config = keys.recorded({ a = 1, b = 2 }, read)
    assert.same({ 1, nil }, { config.a, config.c })
    assert.same({ a = true, c = true }, read)
  end)

  it("is in no config that transformers itself makes for a family", function()
    local configs = assert(json.decode(support.read(program.home .. "/tests/lua/fixtures/configs.json")))
    local count, wrong = 0, {}
    for kind in pairs(arch.families()) do
      if configs[kind] then
        count = count + 1
        local described, list = arch.describe(configs[kind])
        for _, line in ipairs(not described and list or {}) do
          if line:find "may change the arithmetic" then wrong[#wrong + 1] = kind .. ": " .. line end
        end
      end
    end
    assert.is_true(count > 4)
    assert.equal("", table.concat(wrong, "\n"))
  end)
end)
