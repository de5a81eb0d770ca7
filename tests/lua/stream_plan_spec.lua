-- What the plan promises of a model that is streamed: its peak bounds what is measured, closely, at every budget down to the least; at
-- the least it runs, below it the refusal names it.
local batch = require "onn.batch"
local data = require "onn.data"
local generator = require "onn.generator"
local Model = require "onn.model"
local plan = require "onn.plan"
local Session = require "onn.session"
local stores = require "onn.core.store"
local support = require "tests.support"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local Tokenizer = require "onn.tokenizer"

local folder, threads
local made = {}

setup(function()
  folder, threads = support.scratch(), tensors.threads()
  tensors.set_threads(2)
end)
teardown(function()
  tensors.set_threads(threads)
  tensors.set_budget(math.huge)
  support.scratch_remove()
end)

local usual = { hidden_size = 256, intermediate_size = 704, num_hidden_layers = 8, num_attention_heads = 8, num_key_value_heads = 4,
  vocab_size = 4000, max_position_embeddings = 1024, seed = 1 }
local kinds = {
  llama = {},
  bf16 = { stored = "bf16" },
  untied = { stored = "bf16", tie_word_embeddings = false, num_hidden_layers = 4, vocab_size = 12000 },
  phi3 = { stored = "bf16", model_type = "phi3", tie_word_embeddings = false, num_hidden_layers = 6 },
  qwen3 = { stored = "f16", model_type = "qwen3", head_dim = 64, num_hidden_layers = 6 },
}

local function model_of(kind)
  if made[kind] then return made[kind] end
  local config = {}
  for _, part in ipairs { usual, kinds[kind] } do for k, v in pairs(part) do config[k] = v end end
  local stored = config.stored
  config.stored = nil
  made[kind] = tiny.model(folder .. "/" .. kind, config)
  if stored then
    local path = made[kind] .. "/model.safetensors"
    local from, values = assert(stores.open(path)), {}
    for _, name in ipairs(from:names()) do values[name] = assert(from:read(name, stored)) end
    from:close()
    assert(stores.write(path, values, { format = "pt" }))
  end
  return made[kind]
end

-- Everything that the device holds now; what is dropped is gone.
local function used()
  collectgarbage()
  collectgarbage()
  return tensors.memory().used
end

-- One row of each micro-batch as long as the plan was told.
local function update_of(model, opt, plans)
  local micros, row = {}, 0
  for m = 1, plans.micros do
    local ids = {}
    for r = 1, math.min(plans.micro_batch, opt.batch - row) do
      ids[r], row = {}, row + 1
      for t = 1, opt.seq_len do ids[r][t] = (row * 7 + t * 13) % model.sizes.vocabulary end
    end
    micros[m] = batch.from_ids(tensors.from_table(ids, "i64"))
  end
  return micros
end

-- Two updates as `plans` says, under its own peak as the budget; the most bytes that the device held.
local function peak_of(model, opt, plans)
  local before = used()
  tensors.reset_peak()
  tensors.set_budget(before + plans.peak)
  local micros = update_of(model, opt, plans)
  assert(model:load { ring = plans.ring })
  opt.sweep = plans.sweep
  opt.carries = { quota = plans.carries.quota, pinned = plans.carries.pinned, scratch = folder, expected = plans.carries.expected }
  local session = assert(Session.new(model, opt))
  local spilled = 0
  for _ = 1, 2 do spilled = math.max(spilled, session:update(micros, 0).bytes_spilled) end
  local peak = tensors.memory().peak - before
  for _, b in ipairs(micros) do batch.free(b) end
  session:close()
  model:close()
  tensors.set_budget(math.huge)
  return peak, spilled
end

describe("the plan of a streamed model", function()
  after_each(function()
    tensors.set_budget(math.huge)
    used()
  end)
  local tried = {}
  local cases = {
    { "llama", { batch = 8, seq_len = 64 } },
    { "llama", { batch = 4, seq_len = 64, dropout = 0.1, dtype = "bf16" } },
    { "bf16", { batch = 8, seq_len = 128, dtype = "bf16" } },
    { "bf16", { batch = 16, seq_len = 128, dtype = "bf16", layers = { [6] = true, [7] = true } } },
    { "bf16", { batch = 4, seq_len = 128, dtype = "bf16", recompute = "on", chunk = 2 } },
    { "bf16", { batch = 32, seq_len = 64, micro_batch = 2, dtype = "bf16", recompute = "on" } },
    { "untied", { batch = 4, seq_len = 128, dtype = "bf16" } },
    { "phi3", { batch = 4, seq_len = 128, dtype = "bf16" } },
    { "qwen3", { batch = 4, seq_len = 128 } },
    { "qwen3", { batch = 4, seq_len = 128, dtype = "bf16" } },
  }

  local function planned(kind, opt, budget, slots)
    local model = assert(Model.open(model_of(kind), { dtype = opt.dtype or "f32" }))
    local whole = { rank = 8, total_steps = 4, seed = 3, dropout = 0, budget = budget, slots = slots, recompute = "auto" }
    for k, v in pairs(opt) do whole[k] = v end
    return model, whole, plan.training(model, whole)
  end

  for _, case in ipairs(cases) do
    local kind, opt = case[1], case[2]
    local name = ("%s, %s%s%s"):format(kind, opt.dtype or "f32", opt.recompute and ", rebuilt" or "", opt.chunk and ", chunk" or "")
    it(("bounds what is measured, closely: %s, batch %d"):format(name, opt.batch), function()
      local model, _, plans = planned(kind, opt, 1)
      assert.is_false(plans.fits)
      local least, seen = plans.minimum, {}
      model:close()
      -- share of the least budget, and slots if they are asked for
      for _, way in ipairs { { 1 }, { 1.15 }, { 1.5 }, { 1.6, 2 }, { 2.5, 3 }, { 100, 2 } } do
        local budget = math.ceil(least * way[1])
        local m, whole, p = planned(kind, opt, budget, way[2])
        assert.is_true(p.fits and p.peak <= budget)
        local what = ("slots %s, micro-batch %d, kept %d, together %d, carries %s"):format(tostring(p.slots), p.micro_batch, p.kept,
          p.together, tostring(p.carries.quota))
        if p.slots and not seen[what] then
          seen[what] = true
          local peak, spilled = peak_of(m, whole, p)
          assert.equal(p.spill_written > 0, spilled > 0, what)
          assert.is_true(spilled <= p.spill_written, ("%s; spilled: predicted %.3f MB, measured %.3f MB"):format(what, p.spill_written / 1e6,
            spilled / 1e6))
          what = ("%s; predicted %.3f MB, measured %.3f MB"):format(what, p.peak / 1e6, peak / 1e6)
          assert.is_true(p.peak >= peak, what)
          -- tapes that are kept and carries that are spilled are not largest at one moment
          assert.is_true(p.peak <= (p.kept > 0 and p.carries.quota and 1.25 or 1.15) * peak, what)
          tried[p.kept > 0 and 1 or 2], tried[p.carries.quota and 3 or 4] = true, true
        else
          m:close()
        end
      end
    end)
  end

  it("was tried with tapes kept and rebuilt, carries in memory and spilled", function() assert.same({ true, true, true, true }, tried) end)

  it("bounds what generating takes", function()
    for _, case in ipairs { { "bf16", "bf16" }, { "llama", "f32" }, { "llama", "bf16" }, { "untied", "bf16" } } do
      local prompts = {}
      for s = 1, 4 do
        prompts[s] = {}
        for i = 1, 100 * s do prompts[s][i] = (s * 31 + i * 7) % 290 end
      end
      local function go(budget, slots)
        local model = assert(Model.open(model_of(case[1]), { dtype = case[2] }))
        local p = plan.generation(model, prompts, { max_tokens = 20, budget = budget, slots = slots })
        if not p.fits then
          model:close()
          return p
        end
        local before = used()
        tensors.reset_peak()
        tensors.set_budget(before + p.peak)
        assert(model:load { ring = p.ring })
        generator.run(model, prompts, {}, { max_tokens = 20, temperature = 0, together = p.together }, function() end)
        local peak = tensors.memory().peak - before
        tensors.set_budget(math.huge)
        model:close()
        local what = ("%s: slots %s, together %d: predicted %.3f MB, measured %.3f MB"):format(case[1], tostring(p.slots), p.together,
          p.peak / 1e6, peak / 1e6)
        assert.is_true(p.peak >= peak, what)
        assert.is_true(p.peak <= 1.15 * peak, what)
        return p
      end
      local least = go(1).minimum
      go(least)
      go(2 * least, 3)
    end
  end)

  it("bounds what a held-out loss takes", function()
    local rows = {}
    for i = 1, 24 do rows[i] = { prompt = "the", completion = (" red cat sees"):rep(40 + i % 3) } end
    for _, case in ipairs { { "bf16", "bf16" }, { "llama", "bf16" }, { "untied", "bf16" }, { "phi3", "f32" } } do
      local want
      for _, share in ipairs { 1, 1.3, 1000 } do
        local model = assert(Model.open(model_of(case[1]), { dtype = case[2] }))
        local set = assert(data.open(rows, assert(Tokenizer.open(model.directory)), { seq_len = 256 }))
        local least = plan.evaluation(model, set, { batch = 4, seq_len = 256, budget = 1 }).minimum
        local p = plan.evaluation(model, set, { batch = 4, seq_len = 256, budget = math.ceil(least * share), slots = share > 1 and 3 or nil })
        assert.is_true(p.fits)
        local before = used()
        tensors.reset_peak()
        tensors.set_budget(before + p.peak)
        assert(model:load { ring = p.ring })
        local loss = data.loss(model, set, { batch = 4, micro_batch = p.micro_batch, together = p.together, seq_len = 256 })
        local peak = tensors.memory().peak - before
        tensors.set_budget(math.huge)
        model:close()
        local what = ("%s: slots %s, micro-batch %d, together %d: predicted %.3f MB, measured %.3f MB"):format(case[1], tostring(p.slots),
          p.micro_batch, p.together, p.peak / 1e6, peak / 1e6)
        want = want or loss
        assert.equal(want, loss, what)
        assert.is_true(p.peak >= peak, what)
        assert.is_true(p.peak <= 1.35 * peak, what) -- the head is counted as if its gradient were made
      end
    end
  end)
end)
