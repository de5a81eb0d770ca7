-- A model whose weights pass through a ring gives what the same model in memory gives, bit by bit: training with any slots, chunk,
-- micro-batch, tapes, spilled carries and known prefixes; held-out loss; logits and gradients; generated tokens.
local batch = require "onn.batch"
local core = require "onn.core.ops"
local data = require "onn.data"
local generator = require "onn.generator"
local layers = require "onn.layers"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local optim = require "onn.optim"
local prefix = require "onn.prefix"
local Session = require "onn.session"
local stores = require "onn.core.store"
local support = require "tests.support"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local Tokenizer = require "onn.tokenizer"
require "onn.tensor"

local merged = support.merged

local folder, threads
local made, runs = {}, 0

setup(function() folder, threads = support.scratch(), tensors.threads() end)
teardown(function()
  tensors.set_threads(threads)
  support.scratch_remove()
end)

local longrope = { rope_type = "longrope", short_factor = { 1, 1.1, 1.2, 1.3 }, long_factor = { 2, 2.5, 3, 4 }, factor = 4,
  original_max_position_embeddings = 10 }
local kinds = {
  llama = {},
  f16 = { stored = "f16" },
  bf16 = { stored = "bf16" },
  untied = { tie_word_embeddings = false },
  large = { vocab_size = 3500 },
  large_untied = { vocab_size = 3500, tie_word_embeddings = false, stored = "bf16" },
  phi3 = { model_type = "phi3", tie_word_embeddings = false },
  phi3_bf16 = { model_type = "phi3", tie_word_embeddings = false, stored = "bf16" },
  qwen3 = { model_type = "qwen3", head_dim = 16, tie_word_embeddings = false },
  qwen2 = { model_type = "qwen2" }, -- with biases
  longrope = { rope_scaling = longrope },
  dynamic = { rope_scaling = { rope_type = "dynamic", factor = 2 }, max_position_embeddings = 12 },
  -- long enough for prompts of several parts
  long = { max_position_embeddings = 2048, num_hidden_layers = 2 },
}

-- The directory of a tiny model of this kind, made once.
local function model_of(kind)
  if made[kind] then return made[kind] end
  local changes = {}
  for k, v in pairs(kinds[kind]) do changes[k] = v end
  local stored = changes.stored
  changes.stored = nil
  changes.num_hidden_layers = changes.num_hidden_layers or 4
  made[kind] = tiny.model(folder .. "/" .. kind, changes)
  local path = made[kind] .. "/model.safetensors"
  local from, values = assert(stores.open(path)), {}
  for _, name in ipairs(from:names()) do
    local value = assert(from:read(name))
    if #value:shape() == 1 then value = value + core.normal(tensors.new("f32", value:shape()), 5, name, 0, 0.1) end -- norms are 1
    values[name] = stored and value:to(stored) or value
  end
  from:close()
  assert(stores.write(path, values, { format = "pt" }))
  return made[kind]
end

local function load(kind, how)
  local model = assert(Model.open(model_of(kind), { dtype = how.dtype or "f32" }))
  assert(model:load { ring = how.slots and { slots = how.slots, chunk = how.chunk, prefetch = how.prefetch, direct = how.direct } or nil })
  return model
end

-- Trains `how.epochs` (1) epochs of 3 updates; returns losses and gradient norms as text, the hash of the adapter, and facts.
local function train(kind, how)
  tensors.set_threads(how.threads or 1)
  local model = load(kind, how)
  local known, heard
  runs = runs + 1
  local directory = ("%s/out%d"):format(folder, runs)
  assert(system.mkdir_p(directory))
  local options = { rank = 4, alpha = 8, dropout = how.dropout or 0, lr = 0.01, total_steps = 6, seed = 3, layers = how.layers,
    sweep = { keep_from = how.keep_from, head_together = how.together }, recompute = how.recompute,
    carries = how.quota and { quota = how.quota, scratch = directory, expected = 1 } or nil }
  if how.prefix then
    heard = {}
    known = prefix.open { key = prefix.key(model, how.lowest), quota = how.prefix == "disk" and 3000 or math.huge,
      directory = how.prefix == "disk" and directory or nil, angles = model.angles, note = function(text) heard[#heard + 1] = text end }
    options.prefix = known
  end
  local session = assert(Session.new(model, options))
  local order = { batch = 6, micro_batch = how.micro or 2, seq_len = 24, pack = how.pack, seed = 3, epoch = 0, cursor = 0 }
  local set = assert(data.open(tiny.rows(18), assert(Tokenizer.open(model_of(kind))), { seq_len = 24, pack = how.pack }))
  local said, facts = {}, { streamed = 0, spilled = 0, known = 0, used = {} }
  for epoch = 0, (how.epochs or 1) - 1 do
    order.epoch = epoch
    for update in data.batches(set, order) do
      local r = session:update(update, epoch)
      for _, b in ipairs(update) do batch.free(b) end
      said[#said + 1] = ("%a %a"):format(r.loss, r.grad_norm)
      facts.streamed, facts.spilled, facts.known = facts.streamed + r.bytes_streamed, facts.spilled + r.bytes_spilled,
        facts.known + (r.prefix_tokens or 0)
    end
  end
  said[#said + 1] = ("%a"):format((data.loss(model, set, merged(order, { together = 2 }))))
  assert(session:save(directory))
  session:close()
  if known then
    facts.disk = known:stats().disk
    known:close(true)
    assert.same({}, heard)
  end
  model:close()
  return table.concat(said, "; "), assert(system.hash_file(directory .. "/adapter_model.safetensors")), facts
end

describe("training through a ring is training in memory:", function()
  local function show(how)
    local list = {}
    for k, v in pairs(how) do
      if k == "layers" then v = layers.text(v, 4) end
      list[#list + 1] = ("%s %s"):format(k, tostring(v))
    end
    table.sort(list)
    return table.concat(list, ", ")
  end

  -- base: what is trained; ways: how. check(facts, how): what the way must have done.
  local function same(name, kind, base, ways, check)
    it(name, function()
      local losses, hash = train(kind, base)
      for _, way in ipairs(ways) do
        local how = merged(base, way)
        local got, adapter, facts = train(kind, how)
        assert.equal(losses, got, show(how))
        assert.equal(hash, adapter, show(how))
        assert.is_true(facts.streamed > 0 or not how.slots, show(how))
        if how.quota then assert.is_true(facts.spilled > 0, show(how)) end
        if how.prefix then assert.is_true(facts.known > 0, show(how)) end
        if how.prefix == "disk" then assert.is_true(facts.disk > 0, show(how)) end
        if check then check(facts, how) end
      end
    end)
  end

  local every = { {}, { slots = 1 }, { slots = 2 }, { slots = 3 }, { slots = 100 }, { slots = 2, chunk = 2 }, { slots = 1, chunk = 3 },
    { slots = 2, prefetch = false }, { slots = 1, prefetch = false, chunk = 2 }, { slots = 2, direct = false },
    { slots = 2, micro = 1 }, { slots = 2, micro = 3 }, { slots = 1, micro = 6 },
    { slots = 2, recompute = true }, { slots = 2, keep_from = 3 }, { slots = 2, keep_from = 4, micro = 1 }, { slots = 1, keep_from = 5 },
    { slots = 2, together = 1 }, { slots = 2, together = 2, micro = 1 }, { slots = 2, threads = 2 },
    { slots = 3, threads = 3, micro = 1, chunk = 2 },
    { slots = 2, quota = 4000, recompute = true }, { slots = 2, quota = 4000, keep_from = 4, micro = 1, together = 1 },
    { slots = 1, quota = 0, recompute = true, micro = 1, threads = 2 }, { quota = 4000, recompute = true, micro = 1 } }
  local few = { { slots = 1, recompute = true, micro = 1 }, { slots = 2 }, { slots = 3, chunk = 2, threads = 2, micro = 3 },
    { slots = 2, quota = 2000, keep_from = 4, micro = 1, together = 1 } }

  same("every way, f32", "llama", {}, every)
  same("every way, bf16", "bf16", { dtype = "bf16", dropout = 0.1 }, every)
  same("f16 stored, f32", "f16", {}, few)
  same("f16 stored, bf16", "f16", { dtype = "bf16" }, few)
  same("f32 stored, bf16", "llama", { dtype = "bf16" }, few)
  same("bf16 stored, f32", "bf16", {}, few)
  same("untied", "untied", { dropout = 0.1 }, few)
  same("a vocabulary of several cuts", "large", {}, few)
  same("a vocabulary of several cuts, untied, bf16", "large_untied", { dtype = "bf16" }, few)
  same("phi3, fused", "phi3", {}, few)
  same("phi3, fused, bf16", "phi3_bf16", { dtype = "bf16" }, few)
  same("qwen3", "qwen3", {}, few)
  same("qwen2, biases", "qwen2", {}, few)
  same("packed rows", "llama", { pack = "best-fit", dropout = 0.1 }, few)
  same("a stream of rows", "llama", { pack = "stream" }, few)
  -- angles depend on the longest sequence of a micro-batch: it is part of what is computed
  local fixed = { { slots = 1, recompute = true }, { slots = 2 }, { slots = 2, chunk = 2, threads = 2, together = 1 },
    { slots = 2, quota = 2000, keep_from = 4 } }
  same("longrope", "longrope", { micro = 1 }, fixed)
  same("longrope, two rows at once", "longrope", { micro = 2 }, fixed)
  same("dynamic rope", "dynamic", { micro = 1 }, fixed)

  local function cached(name, kind, base)
    same(name .. ", frozen prefix known", kind, merged({ epochs = 2, recompute = true }, base), { { slots = 2 }, { prefix = "memory" },
      { slots = 2, prefix = "memory" }, { slots = 1, prefix = "disk", micro = base.micro or 1 },
      { slots = 2, prefix = "disk", quota = 2000, micro = base.micro or 3, epochs = 2 },
      { slots = 2, prefix = "memory", quota = 0, keep_from = 5, recompute = false, threads = 2 } })
  end
  cached("the last layer", "llama", { layers = { [3] = true }, lowest = 5 })
  cached("a middle layer, dropout", "llama", { layers = { [1] = true }, lowest = 3, dropout = 0.1 })
  cached("the last layers, bf16", "bf16", { layers = { [2] = true, [3] = true }, lowest = 4, dtype = "bf16", dropout = 0.1 })
  cached("packed rows", "untied", { layers = { [2] = true }, lowest = 4, pack = "best-fit" })
  cached("longrope", "longrope", { layers = { [2] = true }, lowest = 4, micro = 1 })
  cached("dynamic rope", "dynamic", { layers = { [2] = true }, lowest = 4, micro = 1 })

  it("another seed's differ, so that comparing means something", function()
    assert.not_equal((train("llama", { slots = 2 })), (train("llama", { slots = 2, pack = "best-fit" })))
    assert.not_equal((train("llama", { slots = 2 })), (train("untied", { slots = 2 })))
  end)

  -- A session that trains the last layer with a frozen-prefix cache, and the micro-batches of its first updates.
  local function with_prefix(quota, updates, carries)
    local model, heard = load("llama", { slots = 2 }), {}
    local known = prefix.open { key = prefix.key(model, 5), quota = quota, note = function(text) heard[#heard + 1] = text end }
    local session = assert(Session.new(model, { rank = 4, lr = 0.01, total_steps = 9, seed = 3, layers = { [3] = true }, prefix = known,
      carries = carries }))
    local set, list = assert(data.open(tiny.rows(18), assert(Tokenizer.open(model_of "llama")), { seq_len = 24 })), {}
    for update in data.batches(set, { batch = 6, micro_batch = 2, seq_len = 24, seed = 3, epoch = 0 }) do
      if #list < updates then list[#list + 1] = update else for _, b in ipairs(update) do batch.free(b) end end
    end
    local function close()
      for _, update in ipairs(list) do for _, b in ipairs(update) do batch.free(b) end end
      session:close()
      known:close()
      model:close()
    end
    return session, list, known, close, heard
  end

  it("an error while a known prefix is taken up leaves nothing behind", function()
    local session, updates, known, close = with_prefix(math.huge, 1)
    session:update(updates[1], 0)
    local asked = 0
    function known.get(...)
      asked = asked + 1
      if asked == 2 then error("no memory", 0) end
      return getmetatable(known).get(...)
    end
    assert.same({ false, "no memory" }, { pcall(session.update, session, updates[1], 0) })
    assert.equal(0, session.carries:stats().count)
    known.get = nil
    assert.is_true(session:update(updates[1], 0).prefix_tokens > 0)
    close()
  end)

  it("filling ahead asks by names, so that a known prefix is fetched once", function()
    local session, updates, known, close = with_prefix(math.huge, 2)
    local function iterate()
      local i = 0
      return session:ahead(function() i = i + 1 return updates[i] end, 1e6)
    end
    local filled, hits = {}, {}
    for epoch = 1, 2 do
      for update in iterate() do filled[#filled + 1] = session:update(update, epoch).filled_tokens end
      hits[epoch] = known:stats().hits
    end
    local tokens = 0
    for _, update in ipairs(updates) do for _, b in ipairs(update) do tokens = tokens + b.tokens end end
    assert.same({ tokens, 0, 0, 0 }, filled)
    assert.same({ 12, 24 }, hits) -- sequences, of two updates
    assert.equal(0, known:stats().misses)
    close()
  end)

  it("filling ahead has its own share of memory: what fits in it is not spilled", function()
    for _, ram in ipairs { 1e6, false } do
      local session, updates, _, close = with_prefix(math.huge, 3, { quota = 4000, scratch = folder })
      local i = 0
      local iterate = session:ahead(function() i = i + 1 return updates[i] end, 1e6, ram or nil)
      local update = iterate()
      assert.equal(ram == 1e6, session.carries:stats().written == 0)
      assert.is_true(session:update(update, 0).filled_tokens > 0)
      close()
    end
  end)

  it("a full prefix cache is not filled ahead, and serves what it has", function()
    local session, updates, known, close, heard = with_prefix(8000, 3)
    local seen = { filled = {}, known = {} }
    for epoch = 1, 3 do
      local i, sums = 0, { filled = 0, known = 0 }
      for update in session:ahead(function() i = i + 1 return updates[i] end, 1) do
        local r = session:update(update, epoch)
        sums.filled, sums.known = sums.filled + r.filled_tokens, sums.known + r.prefix_tokens
      end
      for name, sum in pairs(sums) do table.insert(seen[name], sum) end
    end
    assert.equal(1, #heard)
    assert.is_true(seen.filled[1] > 0)
    assert.same({ 0, 0 }, { seen.filled[2], seen.filled[3] })
    assert.is_true(known.full and seen.known[2] > 0 and seen.known[2] == seen.known[3])
    close()
  end)

  it("a prefix on disk serves the next run, and less is read for it", function()
    local base = { layers = { [3] = true }, recompute = true }
    local losses = train("llama", base)
    local directory = folder .. "/found"
    local function go()
      local model = load("llama", { slots = 2 })
      local known = prefix.open { key = prefix.key(model, 5), quota = 4000, directory = directory, angles = model.angles }
      local session = assert(Session.new(model, { rank = 4, alpha = 8, lr = 0.01, total_steps = 6, seed = 3, layers = base.layers,
        recompute = true, prefix = known }))
      local set = assert(data.open(tiny.rows(18), assert(Tokenizer.open(model_of "llama")), { seq_len = 24 }))
      local said, read, hits = {}, 0, 0
      for update in data.batches(set, { batch = 6, micro_batch = 2, seq_len = 24, seed = 3, epoch = 0 }) do
        local r = session:update(update, 0)
        for _, b in ipairs(update) do batch.free(b) end
        said[#said + 1], read, hits = ("%a %a"):format(r.loss, r.grad_norm), read + r.bytes_streamed, hits + r.prefix_tokens
      end
      session:close()
      known:close()
      model:close()
      assert.equal(1, (losses:find(table.concat(said, "; "), 1, true)))
      return read, hits
    end
    local first, unknown = go()
    local second, hits = go()
    assert.equal(0, unknown)
    assert.is_true(hits > 0 and second < first)
  end)
end)

describe("a streamed model's", function()
  local ids = {}
  for r = 1, 5 do
    ids[r] = {}
    for t = 1, 9 do ids[r][t] = (r * 31 + t * t * 7) % 290 end
  end

  it("logits and gradients are the resident one's", function()
    for _, case in ipairs { { "llama" }, { "large_untied", "bf16" }, { "f16", "bf16" }, { "phi3" }, { "qwen3" }, { "large" } } do
      local want
      for _, how in ipairs { {}, { slots = 1 }, { slots = 2, chunk = 2 }, { slots = 9 } } do
        local model = load(case[1], merged(how, { dtype = case[2] }))
        if model.ring then assert.equal(case[1]:find "large" and 4 or 1, #model.ring.layout.tiles[#model.stages]) end
        local adapter = assert(lora.create(model, { rank = 4, alpha = 8, targets = "all-linear", seed = 1 }))
        local params = lora.parameters(adapter)
        for _, p in ipairs(params) do if p.name:find "B$" then p.value:fill(0.125) end end
        for _, p in ipairs(params) do if p.shadow then p.shadow:copy(p.value) end end
        local b = batch.from_ids(tensors.from_table(ids, "i64"))
        local carry = model:forward(model:carry(b), { training = false })
        local got = { carry.logits:data(), carry.last_hidden:data() }
        local total = sweep.gradient(model, { b }, { scale = 1 / b.supervised, seed = 3 })
        optim.fold(params)
        got[3] = ("%a"):format(total)
        for _, p in ipairs(params) do got[#got + 1] = p.gradients[1]:data() end
        want = want or got
        assert.equal(#want, #got)
        for i = 1, #want do assert.is_true(want[i] == got[i], ("%s: value %d"):format(case[1], i)) end
        batch.free(b)
        model:close()
      end
    end
  end)

  it("tokens are the resident one's, prompts alone or together", function()
    local function prompt(n, length)
      local list = {}
      for i = 1, length do list[i] = (n * 37 + i * i * 11) % 290 end
      return list
    end
    local prompts = { prompt(1, 7), prompt(2, 3), prompt(3, 600), prompt(4, 1), prompt(5, 520) }
    local function generated(model, some, together)
      local out = {}
      for s = 1, #some do out[s] = {} end
      local report = generator.run(model, some, {}, { max_tokens = 6, temperature = 0, together = together },
        function(s, id) table.insert(out[s], id) end)
      assert.equal(6 * #some, report.new_tokens)
      for s = 1, #some do out[s] = table.concat(out[s], " ") end
      return out, report
    end
    for _, case in ipairs { { "long" }, { "long", "bf16" } } do
      local resident = load(case[1], { dtype = case[2] })
      local want = generated(resident, prompts)
      for s = 1, #prompts do assert.same({ want[s] }, (generated(resident, { prompts[s] }))) end
      resident:close()
      for _, how in ipairs { { slots = 1 }, { slots = 2 }, { slots = 2, chunk = 2 }, { slots = 50, prefetch = false } } do
        local model = load(case[1], merged(how, { dtype = case[2] }))
        local got, report = generated(model, prompts)
        assert.same(want, got)
        assert.equal(how.slots < #model.ring.layout.units, report.decode_bytes > 0)
        assert.same(want, (generated(model, prompts, 512)))
        assert.same({ want[3] }, (generated(model, { prompts[3] })))
        model:close()
      end
    end
    for _, kind in ipairs { "large_untied", "phi3_bf16", "f16", "qwen2", "longrope", "dynamic" } do
      for _, dtype in ipairs { "f32", "bf16" } do
        local some = { prompt(1, 7), prompt(2, 3) }
        local resident, streamed = load(kind, { dtype = dtype }), load(kind, { slots = 2, dtype = dtype })
        assert.same(generated(resident, some), (generated(streamed, some)), kind)
        resident:close()
        streamed:close()
      end
    end
  end)

  it("weights are described by tensors without memory while none of them is held", function()
    local model = load("llama", { slots = 2 })
    local weight = model.stages[2].layers[1].weight
    local ok, message = pcall(function() return weight:data() end)
    assert.is_false(ok)
    assert.matches("not in memory", message)
    model:visit(2, function() assert.is_string(weight:data()) end)
    model:close()
  end)
end)
