-- What a config.json may say wrong: each gets one line that names the key and what was found, from the library and from recipes.
local arch = require "onn.arch"
local json = require "onn.core.json"
local support = require "tests.support"
local run, write = support.run, support.write

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
  local all = table.concat(wrong, "; ")
  assert.matches("^config.json: ", all)
  assert.matches(pattern, all)
  assert.is_nil(all:find "%c", all)
end

describe("a config", function()
  it("that is sound is described", function()
    assert.is_table(arch.describe(sound))
    assert.is_table(arch.describe(with { head_dim = 16, num_key_value_heads = json.null, rope_scaling = json.null,
      sliding_window = json.null }))
    assert.is_table(arch.describe { model_type = "x", text_config = sound })
  end)

  it("leaves what it does not say to the family's defaults, and null is said", function()
    local bare = { hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 8, num_key_value_heads = 8,
      vocab_size = 100 }
    local function sizes(kind, changes)
      local config = { model_type = kind }
      for k, v in pairs(bare) do config[k] = v end
      for k, v in pairs(changes or {}) do config[k] = v end
      return assert(arch.describe(config)).sizes
    end
    assert.equal(1e-6, sizes("llama").eps)
    assert.equal(1e-5, sizes("phi3").eps)
    assert.equal(128, sizes("qwen3").head_size)
    assert.equal(4, sizes("qwen2").head_size)
    assert.equal(4096, sizes("mistral").windows[0])
    assert.equal(0, sizes("mistral", { sliding_window = json.null }).windows[1])
    assert.equal(131072, sizes("mistral").positions)
  end)

  it("needs its sizes as positive integers of a sane size", function()
    for _, key in ipairs { "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size" } do
      refused({ [key] = json.null }, "'" .. key .. "' should be a positive integer.*found nothing")
      for _, bad in ipairs { 0, -1, 1.5, 2 ^ 31, 1e300, "32", true, { 1 }, {} } do
        refused({ [key] = bad }, "'" .. key .. "' should be a positive integer, at most %d+, found")
      end
    end
    refused({ num_hidden_layers = 2e9 }, "at most 10000, found 2000000000")
    for _, key in ipairs { "num_key_value_heads", "head_dim", "max_position_embeddings" } do
      for _, bad in ipairs { 0, -1, 1.5, 1e300, "2", { 1 } } do refused({ [key] = bad }, "'" .. key .. "' should be a positive integer") end
    end
  end)

  it("needs the other values to be of their kind", function()
    for _, key in ipairs { "attention_bias", "mlp_bias", "tie_word_embeddings" } do
      for _, bad in ipairs { "false", 0, 1, { 1 } } do refused({ [key] = bad }, "'" .. key .. "' should be true or false, found") end
    end
    for _, bad in ipairs { 0, -1e-5, "1e-5", true } do refused({ rms_norm_eps = bad }, "'rms_norm_eps' should be a number above zero") end
    for _, bad in ipairs { "tanh", "SiLU", 3, true, "a\nb\27[31m" .. ("x"):rep(1000) } do
      refused({ hidden_act = bad }, type(bad) == "string" and "'hidden_act' .* is not known" or "'hidden_act' should be text")
    end
    for _, bad in ipairs { -1, 1.5, "4096", true } do
      refused({ model_type = "mistral", sliding_window = bad }, "'sliding_window' should be an integer from 0")
    end
    refused({ model_type = "qwen2", use_sliding_window = true, sliding_window = 8, max_window_layers = "1" },
      "'max_window_layers' should be a number")
    refused({ model_type = "qwen2", use_sliding_window = true, sliding_window = 8, layer_types = 3 }, "'layer_types' should be a list")
  end)

  it("needs heads that fit its width and each other", function()
    refused({ hidden_size = 30 }, "'hidden_size' 30 is no multiple of 'num_attention_heads' 4")
    refused({ num_key_value_heads = 3 }, "'num_attention_heads' 4 is no multiple of 'num_key_value_heads' 3")
    refused({ num_key_value_heads = 8 }, "is no multiple")
    refused({ head_dim = 7 }, "7 dimensions of a head of 7 are rotated; an even number")
    refused({ head_dim = 1 }, "even number")
  end)

  it("needs a rotary embedding that is known, with what its formula takes", function()
    for _, spelling in ipairs { "rope_scaling", "rope_parameters" } do
      local function rope(value, pattern) refused({ [spelling] = value }, pattern) end
      rope("linear", "'" .. spelling .. "' should be an object, found 'linear'")
      rope({ 1, 2 }, "should be an object")
      rope({ rope_type = "spiral" }, "rotary scaling 'spiral' is not known")
      rope({ type = 3 }, "rotary scaling 3 is not known")
      rope({ type = {} }, "is not known")
      rope({ rope_type = "linear" }, "'linear' lacks 'factor'")
      for _, bad in ipairs { 0, -2, "2", { 1 } } do rope({ type = "linear", factor = bad }, "'factor' should be a number above zero") end
      rope({ type = "llama3", factor = 8 }, "lacks")
      rope({ type = "llama3", factor = 8, low_freq_factor = 4, high_freq_factor = 4 }, "should be below 'high_freq_factor' 4")
      rope({ type = "yarn", factor = 4, beta_fast = "x" }, "'beta_fast' should be a number above zero")
      rope({ type = "longrope", short_factor = { 1, 1, 1, 1 } }, "lacks 'long_factor'")
      rope({ type = "longrope", short_factor = { 1 }, long_factor = { 1, 1, 1, 1 } }, "'short_factor' has 1 values, expected 4")
      rope({ type = "longrope", short_factor = { 1, 1, 1, 0 }, long_factor = { 1, 1, 1, 1 } },
        "'short_factor' should be a list of numbers above zero")
      rope({ type = "longrope", short_factor = 3, long_factor = 3 }, "should be a list")
      rope({ rope_theta = -1 }, "'rope_theta' should be a number above zero")
      rope({ type = "yarn", factor = 2, original_max_position_embeddings = 0 }, "'original_max_position_embeddings' should be")
    end
    for _, bad in ipairs { 0, -1, 1.5, "0.5" } do
      refused({ model_type = "phi3", partial_rotary_factor = bad }, "'partial_rotary_factor' should be a number above 0, at most 1")
    end
    refused({ model_type = "phi3", partial_rotary_factor = 0.4 }, "3 dimensions of a head of 8 are rotated")
    refused({ rope_theta = "10000" }, "'rope_theta' should be a number above zero, found '10000'")
  end)

  it("must be an object of a known architecture", function()
    for _, bad in ipairs { 3, "llama", true } do
      local described, wrong = arch.describe(bad)
      assert.is_nil(described)
      assert.matches("an object is expected", wrong[1])
    end
    for _, bad in ipairs { 3, true, { 1 } } do refused({ model_type = bad }, "'model_type' should be text") end
    refused({ model_type = json.null }, "'model_type' should be text, found nothing")
    local _, wrong = arch.describe(with { model_type = "lla\nma" })
    assert.matches("architecture 'lla%?ma' is not known", wrong[1])
  end)
end)

describe("a recipe", function()
  local folder
  setup(function()
    folder = support.scratch()
    write(folder .. "/model.safetensors", "\2\0\0\0\0\0\0\0{}")
  end)
  teardown(support.scratch_remove)

  it("refuses a model with such a config in one line, exit status 1", function()
    local function refuses(text, pattern)
      write(folder .. "/config.json", text)
      local status, out, err = run { "generate", folder, "--prompt", "x", "-q" }
      assert.equal(1, status, text .. err)
      assert.equal("", out)
      assert.matches("^onn: [^\n]+\n$", err)
      assert.matches(pattern, err)
      assert.truthy(err:find("config.json", 1, true) or err:find("tensor", 1, true), err)
    end
    refuses("", "no JSON")
    refuses("[]", "model_type")
    refuses("3", "object")
    refuses("{}", "model_type")
    refuses('{"hidden_size": NaN}', "line 1")
    refuses('{"hidden_size": 1e400}', "too large")
    refuses('{"model_type":"llama","model_type":"qwen2"}', "twice")
    refuses('{"text_config":3}', "model_type")
    refuses(json.encode(with { hidden_size = 0 }), "hidden_size")
    refuses(json.encode(sound), "tensor 'model.embed_tokens.weight' %(100, 32%) is missing")
    os.remove(folder .. "/config.json")
    local status, _, err = run { "generate", folder, "--prompt", "x", "-q" }
    assert.equal(1, status)
    assert.matches("^onn: [^\n]*config.json[^\n]*\n$", err)
  end)
end)
