-- Recurrent nets: a sequence's bits are its own, whatever it is packed with, the threads, micro-batches and slots; state that is carried on.
local batch = require "onn.batch"
local core = require "onn.core.ops"
local data = require "onn.data"
local full = require "onn.nn.full"
local generator = require "onn.generator"
local json = require "onn.core.json"
local Model = require "onn.model"
local program = require "onn.core.program"
local reference = require "tests.kernels.reference"
local Session = require "onn.session"
local store = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local golden = program.home .. "/tests/golden/recurrent/"

local function open(name, ring)
  local model = assert(Model.open(golden .. name))
  assert(model:load { ring = ring })
  return model
end

-- A batch of sequences of these lengths.
local function packed(lengths, vocabulary)
  local ids, starts, positions, labels, rows = {}, { 0 }, {}, {}, {}
  for s, length in ipairs(lengths) do
    for t = 1, length do
      ids[#ids + 1] = math.floor(core.random(s, "ids", t) * vocabulary)
      positions[#positions + 1], rows[#rows + 1] = t - 1, #rows
      labels[#labels + 1] = t < length and math.floor(core.random(s, "ids", t + 1) * vocabulary) or -100
    end
    starts[s + 1] = #ids
  end
  local i32 = {}
  for name, list in pairs { ids = ids, starts = starts, positions = positions, labels = labels } do i32[name] = tensors.from_table(list, "i32") end
  i32.rows, i32.tokens, i32.supervised = tensors.from_table(rows, "i64"), #ids, #ids - #lengths
  return i32
end

describe("a recurrent layer", function()
  for _, cell in ipairs { "tanh", "relu", "lstm", "gru" } do
    it(cell .. " gives a sequence the same bits alone and beside others, with any threads", function()
      local gates = ({ tanh = 1, relu = 1, lstm = 4, gru = 3 })[cell]
      local hidden, lengths = 37, {}
      for s = 1, 41 do lengths[s] = (s * 7) % 12 end -- empty ones too
      local starts = { 0 }
      for s, n in ipairs(lengths) do starts[s + 1] = starts[s] + n end
      local tokens = starts[#starts]
      local x, dy = reference.random("f32", { tokens, gates * hidden }, 1), reference.random("f32", { tokens, hidden }, 5)
      local w, bias = reference.random("f32", { gates * hidden, hidden }, 2, -0.3, 0.3), reference.random("f32", { gates * hidden }, 3)
      local first, first_cell = reference.random("f32", { #lengths, hidden }, 4), reference.random("f32", { #lengths, hidden }, 6)
      for _, reverse in ipairs { false, true } do
        local function run(from, to, sequences)
          local borders = {}
          for s = sequences[1], sequences[2] + 1 do borders[#borders + 1] = starts[s] - from end
          local cut, states = tensors.from_table(borders, "i32"), sequences[2] - sequences[1] + 1
          local function part(t) return t:narrow(1, from + 1, to - from):contiguous() end
          local h, c = first:narrow(1, sequences[1], states):contiguous(), cell == "lstm" and first_cell:narrow(1, sequences[1], states):contiguous() or nil
          local y, last, last_cell, kept, cells = core.recurrent(part(x), w, bias, nil, cut, h, c, cell, reverse, true)
          local dx, dstate, previous = core.recurrent_backward(part(dy), w, bias, nil, cut, h, c, cell, reverse, y, kept, cells, true)
          return { y, last, last_cell or y, dx, dstate, previous }
        end
        local whole = { reference.any_threads(function() return unpack(run(0, tokens, { 1, #lengths })) end) }
        for _, s in ipairs { 1, 3, 12, 41 } do
          local one = lengths[s] > 0 and run(starts[s], starts[s + 1], { s, s }) or nil
          for k = 1, one and #one or 0 do
            local state = k == 2 or k == 3 and cell == "lstm"
            local same = whole[k]:narrow(1, state and s or starts[s] + 1, state and 1 or lengths[s])
            assert.equal(reference.bits(same), reference.bits(one[k]))
          end
        end
      end
    end)
  end

  it("refuses what does not fit", function()
    local x, starts = tensors.zeros("f32", { 4, 12 }), tensors.from_table({ 0, 4 }, "i32")
    local function says(pattern, ...)
      local ok, message = pcall(core.recurrent, ...)
      assert.is_false(ok)
      assert.is_truthy(message:find(pattern), message)
    end
    says("as wide as the hidden state", x, tensors.zeros("f32", { 12, 2 }), nil, nil, starts, nil, nil, "lstm", false)
    says("state's weight", x, tensors.zeros("f32", { 11, 3 }), nil, nil, starts, nil, nil, "lstm", false)
    says("LSTM's projection", x, tensors.zeros("f32", { 12, 4 }), nil, tensors.zeros("f32", { 4, 4 }), starts, nil, nil, "gru", false)
    says("expected f32 %(tokens, 9%)", x, tensors.zeros("f32", { 9, 3 }), nil, nil, starts, nil, nil, "gru", false)
    says("bad argument #6", x, tensors.zeros("f32", { 12, 3 }), nil, nil, starts, tensors.zeros("f32", { 2, 3 }), nil, "lstm", false)
  end)
end)

describe("a recurrent net", function()
  local folder
  setup(function() folder = support.scratch() end)
  teardown(function() support.scratch_remove() end)

  local function values(session)
    local list = {}
    for i, p in ipairs(session.params) do list[i] = reference.bits(p.value) end
    return table.concat(list, "|")
  end

  -- Three updates of six sequences; what was trained.
  local function train(name, opt, ring, micro)
    local model = open(name, ring)
    local lengths, micros = { 9, 4, 11, 6, 3, 8 }, {}
    local whole = packed(lengths, model.sizes.vocabulary)
    local at, count = whole.starts:totable(), micro or 6
    for first = 1, 6, count do
      local to = math.min(6, first + count - 1)
      local from, n, borders = at[first], at[to + 1] - at[first], {}
      local b = { tokens = n, supervised = n - (to - first + 1) }
      for _, key in ipairs { "ids", "positions", "labels", "rows" } do b[key] = whole[key]:narrow(1, from + 1, n):contiguous() end
      for s = first, to + 1 do borders[#borders + 1] = at[s] - from end
      b.starts = tensors.from_table(borders, "i32")
      micros[#micros + 1] = b
    end
    local options = { total_steps = 3, lr = 1e-2, warmup = 0, seed = 3 }
    for k, v in pairs(opt) do options[k] = v end
    local session = assert(Session.new(model, options))
    for _ = 1, 3 do session:update(micros, 0) end
    local bits = values(session)
    session:close()
    model:close()
    return bits
  end

  for _, name in ipairs { "lstm_bidirectional", "lstm_projected", "gru_bidirectional", "rnn" } do
    it(name .. " is trained to the same bits in memory, streamed, rebuilt and cut into micro-batches", function()
      local lora = { rank = 3 }
      local bits = train(name, lora)
      assert.is_true(bits == train(name, lora, { slots = 1, chunk = 1, direct = true }), "one slot")
      assert.is_true(bits == train(name, lora, { slots = 2, chunk = 1, prefetch = true }), "two slots")
      assert.is_true(bits == train(name, lora, nil, 2), "micro-batches of 2")
      assert.is_true(bits == train(name, lora, nil, 1), "micro-batches of 1")
      assert.is_true(bits == train(name, { rank = 3, recompute = true }), "rebuilt")
      assert.is_true(bits ~= train(name, { rank = 3, lr = 2e-2 }), "the rate matters")
      local all = train(name, { full = true })
      assert.is_true(all == train(name, { full = true }, nil, 4), "all weights, micro-batches of 4")
    end)
  end

  it("moves an adapter as moving the merged weight would: its gradient is that of W + scale B A", function()
    local lora, sweep = require "onn.nn.lora", require "onn.sweep"
    local model = open "gru_bidirectional"
    local adapter = assert(lora.create(model, { rank = 2, alpha = 4, targets = "all-linear", seed = 1 }))
    for i, one in ipairs(adapter.modules) do core.normal(one.B, i, "B", 0, 0.2) end
    local params = lora.parameters(adapter)
    local b = packed({ 7, 5 }, model.sizes.vocabulary)
    local how = function() return { scale = 1 / b.supervised } end
    sweep.gradient(model, { b }, how())
    local merged = open "gru_bidirectional"
    for i, one in ipairs(adapter.modules) do
      local layer = merged:linear_layers()[i].layer
      layer.weight:copy(core.binary(layer.weight, core.affine(core.matmul(one.B, one.A), one.scale, 0), "add"))
    end
    local weights = {}
    for _, p in ipairs(full.parameters(merged)) do weights[p.name] = p.gradients[1] end
    sweep.gradient(merged, { b }, how())
    for i, one in ipairs(adapter.modules) do
      local dw = weights[one.name]
      local want = { core.affine(core.matmul(one.B:transpose(1, 2):contiguous(), dw), one.scale, 0),
        core.affine(core.matmul(dw, one.A:transpose(1, 2):contiguous()), one.scale, 0) }
      for k = 1, 2 do reference.near(params[2 * i - 2 + k].gradients[1], reference.flat(want[k]), 1e-4, 1e-6, one.name) end
    end
    merged:close()
    model:close()
  end)

  it("generates what running the whole text again would", function()
    local model = open "lstm_projected"
    local got, ids = {}, { 3, 1, 4, 1, 5 }
    generator.run(model, { ids, { 2, 7 } }, {}, { max_tokens = 8, temperature = 0 }, function(s, id) if s == 1 then got[#got + 1] = id end end)
    for step = 1, 8 do
      local b = batch.from_ids(tensors.from_table({ ids }, "i32"))
      local logits = model:forward(model:carry(b), {}).logits
      local best = core.reduce(logits:narrow(1, #ids, 1):contiguous(), "argmax"):totable()[1]
      assert.equal(best, got[step])
      ids[#ids + 1] = best
    end
    model:close()
  end)

  it("says that a bidirectional net and a classifier generate nothing", function()
    for _, name in ipairs { "gru_bidirectional", "gru_classes" } do
      local model = open(name)
      local ok, message = pcall(generator.run, model, { { 1 } }, {}, { max_tokens = 1 }, function() end)
      assert.is_false(ok)
      assert.is_truthy(message:find "it cannot generate one", message)
      model:close()
    end
  end)

  local function text_set(seq_len)
    local ids, list = {}, {}
    for t = 1, 200 do list[t] = math.floor(core.random(9, "text", t) * 13) end
    ids[1] = list
    local path = folder .. "/ids.safetensors"
    assert(store.write(path, { input_ids = tensors.from_table(ids, "i32") }, { format = "pt" }))
    return assert(data.open(path, nil, { seq_len = 1000 })), seq_len, list
  end

  it("carries its state through a text: each update goes on where the last one ended", function()
    local model = open "lstm_projected"
    local set, seq_len, list = text_set(10)
    local order = { batch = 4, micro_batch = 3, seq_len = seq_len, pack = "stream", carried = true, seed = 0, epoch = 0 }
    assert.equal(5, data.updates(set, order))
    local session = assert(Session.new(model, { full = true, carried = true, batch = 4, lr = 0, total_steps = 5, warmup = 0 }))
    local streams = {}
    for s = 1, 4 do streams[s] = { unpack(list, (s - 1) * 50 + 1, s * 50) } end
    local ids = tensors.from_table(streams, "i32")
    local labels = ids:totable() -- the last token of a row has no label: what it would be trained to give is in the next
    for s = 1, 4 do for t = 11, 50, 10 do labels[s][t] = -100 end end
    local b = batch.from_ids(ids, tensors.from_table(labels, "i32"))
    local nll = model:forward(model:carry(b), { labels = b.labels, loss_scale = 1 }).nll:totable()
    local updates = 0
    for update in data.batches(set, order) do
      local want, n = 0, 0
      for s = 0, 3 do
        for t = 1, 9 do want, n = want + nll[s * 50 + updates * 10 + t], n + 1 end
      end
      local result = session:update(update, 0)
      assert.equal(n, result.supervised)
      assert.is_true(math.abs(result.loss - want / n) < 1e-5, ("update %d: %g, expected %g"):format(updates, result.loss, want / n))
      updates = updates + 1
    end
    assert.equal(5, updates)
    session:close()
    model:close()
  end)

  it("keeps the carried state in a checkpoint: a run that was stopped gives the bits of one that was not", function()
    local text = {}
    for t = 1, 900 do text[t] = ("abcdefghij k"):sub(1 + math.floor(core.random(2, "text", t) * 12)):sub(1, 1) end
    local path, out = support.write(folder .. "/a.txt", table.concat(text)), folder .. "/m"
    local function onn(...)
      local status, _, err = support.run { ... }
      assert.equal(0, status, err)
    end
    local config = json.encode { architecture = "gru", embedding_size = 5, hidden_size = 8, num_layers = 2, dropout = 0.1 }
    onn("pretrain", config, path, "--characters", "--out", out, "--seq-len", "16", "--batch", "6", "--steps", "3")
    local function whole_run(to, ...)
      onn("train", out, path, "--full", "--out", folder .. to, "--pack", "stream", "--seq-len", "12", "--batch", "5", "--lr", "1e-2",
        "--schedule", "constant", "--warmup", "0", ...)
      return support.read(folder .. to .. "/model.safetensors")
    end
    local whole = whole_run("/whole", "--epochs", "2")
    assert.is_true(whole == whole_run("/micro", "--epochs", "2", "--micro-batch", "2", "--threads", "1", "--recompute", "on"))
    whole_run("/part", "--epochs", "2", "--save-every", "7", "--keep", "9")
    for step = 14, 28, 7 do assert(system.remove_tree(("%s/part/checkpoint-%d"):format(folder, step))) end
    assert.is_true(whole == whole_run("/part", "--epochs", "2", "--resume"))
  end)
end)
