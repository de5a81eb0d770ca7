-- Weights that come in row tiles, where whole blocks do not fit: training, losses, logits and generated tokens are those of a model in
-- memory, bit by bit; and the plan falls back to tiles where the budget asks for it.
local batch = require "onn.batch"
local Cache = require "onn.cache"
local core = require "onn.core.ops"
local data = require "onn.data"
local generator = require "onn.generator"
local measured = require "tests.measured"
local Model = require "onn.model"
local plan = require "onn.plan"
local Session = require "onn.session"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local Tokenizer = require "onn.tokenizer"

local merged = support.merged

local folder, threads
local made, runs = {}, 0

setup(function() folder, threads = support.scratch(), tensors.threads() end)
teardown(function()
  tensors.set_threads(threads)
  support.scratch_remove()
end)

local kinds = {
  llama = {},
  llama_bf16 = { stored = "bf16", tie_word_embeddings = false },
  phi3 = { model_type = "phi3", tie_word_embeddings = false },
  phi3_bf16 = { model_type = "phi3", tie_word_embeddings = false, stored = "bf16" },
  qwen3 = { model_type = "qwen3", head_dim = 48, tie_word_embeddings = false },
  qwen2 = { model_type = "qwen2" }, -- with biases
  mixtral = { model_type = "mixtral", num_local_experts = 6, num_experts_per_tok = 2, intermediate_size = 96, tie_word_embeddings = false },
  mixtral_bf16 = { model_type = "mixtral", num_local_experts = 6, num_experts_per_tok = 2, intermediate_size = 96, stored = "bf16",
    tie_word_embeddings = false },
  sparse = { model_type = "mixtral", num_local_experts = 32, num_experts_per_tok = 2, intermediate_size = 64, tie_word_embeddings = false },
  -- experts in one tensor: (experts, out, in), (experts, in, out)
  granitemoe = { model_type = "granitemoe", num_local_experts = 6, num_experts_per_tok = 2, intermediate_size = 96, tie_word_embeddings = false },
  llama4 = { model_type = "llama4_text", num_local_experts = 4, num_experts_per_tok = 1, intermediate_size = 96, intermediate_size_mlp = 96,
    head_dim = 32, tie_word_embeddings = false },
}

-- The directory of a model of this kind, made once: its largest matrices have several tiles of 64 rows.
local function model_of(kind)
  if made[kind] then return made[kind] end
  local changes = { hidden_size = 128, intermediate_size = 352, num_attention_heads = 4, num_key_value_heads = 2, num_hidden_layers = 3 }
  for k, v in pairs(kinds[kind]) do changes[k] = v end
  local stored = changes.stored
  changes.stored = nil
  made[kind] = tiny.model(folder .. "/" .. kind, changes)
  local path = made[kind] .. "/model.safetensors"
  local from, values = assert(stores.open(path)), {}
  for _, name in ipairs(from:names()) do
    local value = assert(from:read(name))
    if #value:shape() == 1 then -- norms are 1 and biases 0
      value = core.binary(value, core.normal(tensors.new("f32", value:shape()), 5, name, 0, 0.1), "add")
    end
    values[name] = stored and value:to(stored) or value
  end
  from:close()
  assert(stores.write(path, values, { format = "pt" }))
  return made[kind]
end

local function show(how)
  local list = {}
  for k, v in pairs(how) do list[#list + 1] = ("%s %s"):format(k, tostring(v)) end
  table.sort(list)
  return table.concat(list, ", ")
end

local function load(kind, how)
  local model = assert(Model.open(model_of(kind), { dtype = how.dtype or "f32" }))
  local streamed = how.tile or how.slots
  assert(model:load { ring = streamed and { slots = how.slots or 2, tile = how.tile, prefetch = how.prefetch } or nil })
  return model
end

-- Trains 3 updates of 4 rows; returns losses, gradient norms and a held-out loss as text, and the adapter's hash.
local function train(kind, how)
  tensors.set_threads(how.threads or 1)
  local model = load(kind, how)
  local session = assert(Session.new(model, { rank = 4, alpha = 8, dropout = how.dropout or 0, lr = 0.01, total_steps = 3, seed = 3,
    layers = how.layers, targets = how.targets or "all-linear", recompute = how.recompute or false }))
  local order = { batch = 4, micro_batch = how.micro or 2, seq_len = 24, seed = 3, epoch = 0 }
  local set, said = assert(data.open(tiny.rows(12), assert(Tokenizer.open(model_of(kind))), { seq_len = 24 })), {}
  for update in data.batches(set, order) do
    local r = session:update(update, 0)
    for _, b in ipairs(update) do batch.free(b) end
    assert.is_true(r.bytes_streamed > 0 or not how.tile)
    said[#said + 1] = ("%a %a"):format(r.loss, r.grad_norm)
  end
  said[#said + 1] = ("%a"):format((data.loss(model, set, order)))
  runs = runs + 1
  local directory = ("%s/out%d"):format(folder, runs)
  assert(system.mkdir_p(directory))
  assert(session:save(directory))
  session:close()
  model:close()
  return table.concat(said, "; "), assert(system.hash_file(directory .. "/adapter_model.safetensors"))
end

describe("training with row tiles is training in memory:", function()
  local function same(name, kind, base, ways)
    it(name, function()
      local losses, hash = train(kind, base)
      for _, way in ipairs(ways) do
        local how = merged(base, way)
        local got, adapter = train(kind, how)
        assert.equal(losses, got, show(how))
        assert.equal(hash, adapter, show(how))
      end
    end)
  end
  -- tiles of 64 rows; of some more; whole matrices, a few to a unit
  local every = { { tile = 1 }, { tile = 1, slots = 1 }, { tile = 1, slots = 1, prefetch = false }, { tile = 1, slots = 7 },
    { tile = 70000 }, { tile = 70000, recompute = true, micro = 1 }, { tile = 2e5, slots = 3, micro = 3 }, { tile = 1, micro = 1 },
    { tile = 1, recompute = true, micro = 4 }, { tile = 1, threads = 2 }, { tile = 70000, threads = 3, recompute = true, slots = 4 } }
  local few = { { tile = 1, recompute = true, micro = 1 }, { tile = 70000, threads = 2 }, { tile = 2e5, slots = 1, recompute = true } }
  same("llama, f32", "llama", {}, every)
  same("llama, bf16, dropout", "llama_bf16", { dtype = "bf16", dropout = 0.1 }, every)
  same("f32 stored, bf16", "llama", { dtype = "bf16" }, few)
  same("bf16 stored, f32, dropout", "llama_bf16", { dropout = 0.1 }, few)
  same("phi3, fused", "phi3", { dropout = 0.1 }, few)
  same("phi3, fused, bf16", "phi3_bf16", { dtype = "bf16" }, few)
  same("qwen3", "qwen3", {}, few)
  same("qwen2, biases", "qwen2", {}, few)
  same("qwen2, biases, bf16", "qwen2", { dtype = "bf16", dropout = 0.1 }, few)
  same("the last layer", "llama", { layers = { [2] = true } }, few)
  same("a middle layer, dropout", "llama_bf16", { layers = { [1] = true }, dtype = "bf16", dropout = 0.1 }, few)
  same("experts", "mixtral", {}, every)
  same("experts, bf16, dropout", "mixtral_bf16", { dtype = "bf16", dropout = 0.1, targets = "q_proj,w1,w2" }, few)
  same("stacked experts", "granitemoe", {}, few)
  same("stacked experts stored (in, out)", "llama4", { dtype = "bf16" }, few)
  same("some layers of a block", "llama", { targets = "k_proj,down_proj" }, few)
end)

describe("running with row tiles is running in memory:", function()
  local function run(kind, how)
    tensors.set_threads(how.threads or 1)
    local model, chosen, rows = load(kind, how), {}, {}
    local prompts, ids = { { 3, 17, 5, 80, 22 }, { 9 }, { 41, 2, 2, 7 } }, tensors.from_table({ { 4, 9, 1, 33, 250, 12 } }, "i64")
    local b = batch.from_ids(ids)
    local carry = model:forward(model:carry(b), {})
    rows[1] = carry.logits:data()
    generator.run(model, prompts, {}, { max_tokens = 6, temperature = 0 }, function(s, id) chosen[#chosen + 1] = s .. ":" .. id end)
    model:close()
    return rows[1], table.concat(chosen, " ")
  end
  for _, kind in ipairs { "llama", "llama_bf16", "phi3", "phi3_bf16", "qwen3", "qwen2", "mixtral", "sparse", "granitemoe", "llama4" } do
    it(kind, function()
      for _, dtype in ipairs { "f32", "bf16" } do
        local logits, ids = run(kind, { dtype = dtype })
        assert.equal(18, select(2, ids:gsub(":", "")))
        for _, way in ipairs { { tile = 1 }, { tile = 1, slots = 1, prefetch = false }, { tile = 70000, threads = 2 }, { tile = 2e5, threads = 3 }, { slots = 2 } } do
          local how = merged({ dtype = dtype }, way)
          local got, got_ids = run(kind, how)
          assert.is_true(logits == got, show(how))
          assert.equal(ids, got_ids, show(how))
        end
      end
    end)
  end
end)

describe("experts of which few tokens take each", function()
  local function rest_and_expert(model)
    local rest, expert = 0, 0
    for _, stage in ipairs(model.stages) do
      for _, t in ipairs(stage.kind ~= "embedding" and stage.tensors or {}) do
        local bytes = t.vector and 0 or model.store:info(t.name).bytes
        if not t.expert then rest = rest + bytes elseif t.expert == 0 and stage.index == 0 then expert = expert + bytes end
      end
    end
    return rest, expert
  end

  -- Bytes that each of `steps` steps of one sequence reads.
  local function read(how, steps)
    local model = assert(Model.open(model_of "sparse", { dtype = "f32" }))
    local rest, expert = rest_and_expert(model)
    assert(model:load { ring = { slots = how.slots, tile = expert, prefetch = false } })
    local cache, list = Cache.new(model, 1, 32), {}
    for _, logits in ipairs(generator.prefill(model, cache, { { 5 } })) do logits:free() end
    for k = 1, steps do
      local before = model:streamed()
      generator.step(model, cache, { 7 * k }):free()
      list[k] = model:streamed() - before
    end
    cache:free()
    model:close()
    return list, rest, expert
  end

  it("are read when they are asked for", function()
    local list, rest, expert = read({ slots = 2 }, 3)
    for _, bytes in ipairs(list) do
      assert.is_true(bytes <= rest + 3 * 2 * expert, ("%d bytes, %d and 6 of %d are used"):format(bytes, rest, expert))
      assert.is_true(bytes > 3 * expert)
    end
  end)

  it("stay where there are slots, and with them all that every token takes", function()
    local list, _, expert = read({ slots = 60 }, 12)
    for _, bytes in ipairs(list) do assert.is_true(bytes <= 3 * 2 * expert) end
    local all = read({ slots = 1000 }, 40)
    assert.is_true(all[40] < 3 * 2 * expert)
  end)

  it("are planned for", function()
    local model = assert(Model.open(model_of "sparse", { dtype = "f32" }))
    local rest, expert = rest_and_expert(model)
    local whole = plan.generation(model, { { 1, 2, 3 } }, { max_tokens = 8 })
    local p = plan.generation(model, { { 1, 2, 3 } }, { max_tokens = 8, budget = 0.7 * whole.peak })
    assert.is_true(p.fits and p.tile ~= nil)
    assert.is_true(p.bytes_per_sweep <= rest + 3 * 2 * expert)
    local many = plan.inference(model, { tokens = 512, cache = 512, budget = 0.7 * whole.peak })
    assert.is_true(many.bytes_per_sweep > 20 * expert)
    model:close()
  end)
end)

describe("the plan", function()
  local function opened(kind, dtype) return assert(Model.open(model_of(kind), { dtype = dtype })) end

  local function measure(model, opt, p)
    local micros = {}
    for first = 1, opt.batch, p.micro_batch do
      local ids = {}
      for r = first, math.min(first + p.micro_batch - 1, opt.batch) do
        local row = {}
        for t = 1, opt.seq_len do row[t] = (r * 7 + t * 13) % model.sizes.vocabulary end
        ids[#ids + 1] = row
      end
      micros[#micros + 1] = batch.from_ids(tensors.from_table(ids, "i64"))
    end
    return measured.updates(model, opt, p, micros, folder)
  end

  for _, case in ipairs { { "llama", "f32" }, { "llama_bf16", "bf16" }, { "llama", "bf16" }, { "phi3_bf16", "bf16" }, { "qwen3", "f32" },
    { "llama_bf16", "bf16", { dropout = 0.1, micro_batch = 4 } }, { "llama", "f32", { recompute = "on" } },
    { "llama_bf16", "bf16", { layers = { [2] = true } } }, { "mixtral", "f32" }, { "llama4", "bf16" } } do
    local kind, dtype, more = case[1], case[2], case[3] or {}
    it(("bounds the peak with tiles: %s, %s, %s"):format(kind, dtype, next(more) or "all layers"), function()
      tensors.set_threads(2)
      local opt = merged({ rank = 4, batch = 4, seq_len = 64 }, more)
      local _, losses = measure(opened(kind, dtype), opt, plan.training(opened(kind, dtype), opt))
      local model = opened(kind, dtype)
      local least = plan.training(model, merged(opt, { budget = 1 }))
      assert.is_false(least.fits)
      for _, budget in ipairs { least.minimum, least.minimum * 1.02 } do
        local how = merged(opt, { budget = budget })
        local p = plan.training(model, how)
        assert.is_true(p.fits and p.tile ~= nil and p.peak <= budget)
        local peak, said = measure(model, how, p)
        assert.equal(losses, said)
        assert.is_true(p.peak >= peak, ("predicted %.3f MB, measured %.3f MB"):format(p.peak / 1e6, peak / 1e6))
        assert.is_true(p.peak <= 1.25 * peak + 2 ^ 19, ("predicted %.3f MB, measured %.3f MB"):format(p.peak / 1e6, peak / 1e6))
        model = opened(kind, dtype)
      end
      model:close()
    end)
  end
end)
