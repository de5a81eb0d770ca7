-- Dry runs: what they count is what the same code takes when it runs, byte for byte; operations are those of the formulas; nothing of
-- them can be read.
local batch = require "onn.batch"
local core = require "onn.core.ops"
local costs = require "onn.plan.costs"
local dry = require "onn.dry"
local Model = require "onn.model"
local phantom = require "onn.plan.phantom"
local picture = require "onn.core.picture"
local program = require "onn.core.program"
local scope = require "onn.scope"
local store = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local shared = program.home .. "/../shared/golden"

-- Golden models that a token batch goes through, by name.
local function models()
  local names = {}
  for _, name in ipairs(system.exists(shared) and system.list(shared) or {}) do
    if system.exists(shared .. "/" .. name .. "/config.json") then
      local model = Model.open(shared .. "/" .. name)
      if model and #model.missing == 0 and model.net == require "onn.arch.decoder" then names[#names + 1] = name end
      if model then model.store:close() end
    end
  end
  return names
end

-- The same batch as batch.example, with tokens.
local function tokens_of(_, rows, length)
  local ids = {}
  for r = 1, rows do
    ids[r] = {}
    for t = 1, length do ids[r][t] = (r * 7 + t * 13) % 90 end
  end
  local made = batch.from_ids(tensors.from_table(ids, "i64"))
  made.labels:free()
  made.labels = made.ids -- all count
  return made
end

describe("a dry run", function()
  local threads
  setup(function() threads = tensors.threads() tensors.set_threads(2) end)
  teardown(function() tensors.set_threads(threads) end)

  -- Runs f(shadow) for real, on weights without meaning, in a scope of its own.
  local function really(model, opt, f)
    collectgarbage() collectgarbage()
    return scope(function() return f(phantom.model(model, opt)) end)
  end

  local ways = { { what = "LoRA", rank = 4, dropout = 0, lora = true }, { what = "LoRA with dropout", rank = 3, dropout = 0.1, lora = true },
    { what = "frozen" }, { what = "all weights", full = true } }

  for _, name in ipairs(models()) do
    for _, dtype in ipairs { "f32", "bf16" } do
      it(("counts what a stage takes, forward and back: %s, %s"):format(name, dtype), function()
        local model = assert(Model.open(shared .. "/" .. name, { dtype = dtype }))
        model.net = setmetatable({ example = tokens_of }, { __index = model.net })
        local ok, message = pcall(really, model, ways[1], function(shadow)
          local modules, width = {}, costs.pass(shadow, 1, 1, 2, nil, false).out
          for _, layer in ipairs(model.stages[2].layers) do modules[layer] = true end
          return costs.pass(shadow, 2, 1, 2, width, true, { modules = modules })
        end)
        if not ok then
          model:close()
          return pending("it does not run: " .. message:match "^[^\n]*")
        end
        for _, way in ipairs(ways) do
          for _, size in ipairs { { 1, 7 }, { 3, 60 } } do
            local hidden
            for i = 1, math.min(#model.stages - 1, 3) do
              local modules = {}
              for _, layer in ipairs(way.lora and model.stages[i].layers or {}) do modules[layer] = true end
              local back = i > 1 or way.full
              local function run(shadow) return costs.pass(shadow, i, size[1], size[2], hidden, back, { modules = modules }) end
              local counted, measured = dry(function() return run(phantom.model(model, way)) end), really(model, way, run)
              counted.flops, counted.back_flops, measured.flops, measured.back_flops = nil, nil, nil, nil
              -- lists of token tiles are counted by the most that there can be; tables of a few numbers are real
              for _, key in ipairs { "forward", "back" } do
                local text = ("%s, stage %d, %d x %d, %s: %s counted, %s measured"):format(way.what, i, size[1], size[2], key,
                  tostring(counted[key]), tostring(measured[key]))
                local over = (counted[key] or 0) - (measured[key] or 0)
                local spread = model.sizes.moe and 0.3 * (measured[key] or 0) or 0 -- which experts tokens go to is not known
                assert.is_true(over >= -256 and over <= 256 + spread, text)
                counted[key], measured[key] = nil, nil
              end
              if model.sizes.moe and counted.tape then
                assert.is_true(counted.tape >= 0.8 * measured.tape - 256 and counted.tape <= 1.5 * measured.tape + 256)
                counted.tape, measured.tape = nil, nil
              end
              assert.same(measured, counted)
              hidden = counted.out
            end
            for n = 1, 3, 2 do
              local function run(shadow) return costs.pass_head(shadow, size[1], size[2], hidden, n, way.full or way.lora or false) end
              local counted, measured = dry(function() return run(phantom.model(model, way)) end).bytes, really(model, way, run).bytes
              local text = ("%s, head of %d, %d x %d: %d counted, %d measured"):format(way.what, n, size[1], size[2], counted, measured)
              assert.is_true(counted >= measured and counted <= 1.02 * measured + 512, text)
            end
          end
        end
        model:close()
      end)
    end
  end

  if not system.exists(shared) then
    pending("operations as the usual formulas: " .. shared .. " is absent")
  else
    it("counts operations as the usual formulas do", function()
      local model = assert(Model.open(shared .. "/llama", { dtype = "f32" }))
      local c, rows, length, rank = model.sizes, 3, 40, 4
      local modules, adapter = {}, 0
      for _, stage in ipairs(model.stages) do
        for _, layer in ipairs(stage.layers) do modules[layer], adapter = true, adapter + 2 * rank * (layer.out + layer.into) end
      end
      local got = costs.of(model, rows, length, { lowest = 2, modules = modules, rank = rank, dropout = 0 })
      local q, kv, forward, back = c.heads * c.head_size, c.kv_heads * c.head_size, 0, 0
      local block = 2 * (c.width * (2 * q + 2 * kv) + 3 * c.width * c.inner)
      for _, one in ipairs(got.stages) do forward, back = forward + one.flops, back + (one.back_flops or 0) end
      local tokens, attention, vocabulary = rows * length, 2 * length * q, 2 * c.vocabulary * c.width
      assert.equal(tokens * (c.layers * (block + attention) + adapter), forward)
      assert.equal(tokens * (c.layers * (block + 2 * attention) + 2 * adapter), back)
      assert.equal(tokens * vocabulary, got.head_flops(false))
      assert.equal(tokens * 2 * vocabulary, got.head_flops(true))
      model:close()
    end)
  end

  it("counts a window's attention, and that of keys that came before", function()
    local function flops(queries, keys, window)
      return dry(function()
        local before = tensors.dry_flops()
        local q, k = tensors.new("f32", { queries, 2, 8 }), tensors.new("f32", { keys, 1, 8 })
        core.attention(q, k, k, tensors.from_table({ 0, queries }, "i32"), tensors.from_table({ 0, keys }, "i32"), true, window, 1)
        return tensors.dry_flops() - before
      end)
    end
    assert.equal(4 * 16 * 100 * 100 / 2, flops(100, 100, 0))
    assert.equal(4 * 16 * (100 * 100 - 60 * 60) / 2, flops(40, 100, 0))
    assert.equal(4 * 16 * (100 * 100 - 90 * 90) / 2, flops(100, 100, 10))
    assert.equal(4 * 16 * 40 * 10, flops(40, 100, 10))
  end)

  it("takes no memory, changes nothing, and has no values", function()
    local before, kept = tensors.memory().used, tensors.from_table { 1, 2, 3 }
    local left
    dry(function()
      local large = tensors.new("f32", { 2 ^ 20, 2 ^ 12 })
      assert.equal(2 ^ 34, tensors.memory().used)
      assert.equal(2 ^ 14, core.matmul(large:narrow(1, 1, 64), tensors.zeros("f32", { 2 ^ 12, 64 })):bytes())
      kept:fill(7)
      assert.same({ 1, 2, 3 }, kept:totable())
      for _, read in ipairs { function() large:narrow(1, 1, 1):totable() end, function() core.total(large) end,
        function() core.running_sum(large) end, function() large:data() end, function() store.write("/nowhere", { a = large }) end } do
        assert.error_matches(read, "a dry run has no values")
      end
      left = tensors.keep(core.affine(kept, 1, 1))
    end)
    assert.same({ 1, 2, 3 }, kept:totable())
    assert.error_matches(function() core.affine(left, 1, 1) end, "has been freed")
    left:free()
    kept:free()
    assert.equal(before, tensors.memory().used)
  end)

  it("touches nothing behind a phantom: convolutions of small images, groups, pictures, caches", function()
    local index, x = tensors.from_table({ 0, 1, 0 }, "i32"), tensors.zeros("f32", { 1000, 100 })
    dry(function()
      local images, w, dw = tensors.zeros("f32", { 2, 9, 8, 8 }), tensors.zeros("f32", { 4, 9, 3, 3 }), tensors.zeros("f32", { 4, 9, 3, 3 })
      local y = core.conv(images, w, nil, { padding = 1 })
      assert.same({ 2, 4, 8, 8 }, y:shape())
      core.conv_backward(y, images, w, { padding = 1 }, true, dw)
      assert.same({ 0, 2, 1 }, (core.group(index, 2)):totable())
      local q, k = tensors.new("f32", { 2, 4, 8 }), tensors.new("f32", { 2, 16, 4, 8 })
      for _, read in ipairs { function() core.attention_decode(q, k, k, tensors.new("i32", { 2 }), 0, 1) end, function() core.total(x) end,
        function() picture.read("a.png", tensors.new("f32", { 3, 2, 2 }), { 0, 0, 0 }, { 1, 1, 1 }) end } do
        assert.error_matches(read, "a dry run has no values")
      end
    end)
  end)

  it("ends where it fails, and begins once", function()
    assert.error_matches(function() dry(function() error("broken", 0) end) end, "broken")
    assert.is_false(tensors.is_dry())
    assert.error_matches(function() dry(function() dry(function() end) end) end, "a dry run within a dry run")
    assert.is_false(tensors.is_dry())
  end)
end)
