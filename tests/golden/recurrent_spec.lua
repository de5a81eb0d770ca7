-- Recurrent nets against PyTorch: logits, all gradients, training losses; the same bits streamed, cut into micro-batches, with any threads.
local adamw = require "onn.optim".adamw
local compare = require "tests.golden.compare"
local full = require "onn.nn.full"
local Model = require "onn.model"
local optim = require "onn.optim"
local program = require "onn.core.program"
local store = require "onn.core.store"
local sweep = require "onn.sweep"
local system = require "onn.core.system"

local own, shared = program.home .. "/tests/golden/recurrent", program.home .. "/../shared/golden"

local largest, distance = compare.largest, compare.distance

local function open(path, ring)
  local model = assert(Model.open(path))
  assert.same({}, model.missing)
  assert(model:load { ring = ring })
  return model
end

local function close_to_reference(path)
  local golden = assert(store.open(path .. "/golden.safetensors"))
  local model = open(path)
  local given = { x = golden:read "x", labels = golden:info "labels" and golden:read "labels" }
  local b = assert(model.net.batch(model.sizes, given))
  local logits, want = model:forward(model:carry(b), {}).logits, golden:read "logits"
  assert.is_true(distance(logits, want) <= 1e-4 * largest(want), "logits")
  local params, state = full.parameters(model), adamw.state()
  local losses, top, known = golden:read("train.losses"):totable(), 0, 0
  for _, name in ipairs(golden:names()) do
    if name:find "^grad%." then top, known = math.max(top, largest(golden:read(name))), known + 1 end
  end
  assert.equal(known, #params)
  for step = 1, #losses do
    local loss = sweep.gradient(model, { b }, { scale = 1 / b.supervised }) / b.supervised
    assert.is_true(math.abs(loss - losses[step]) <= 1e-4 * losses[step], "loss " .. step)
    optim.fold(params)
    for _, p in ipairs(step == 1 and params or {}) do
      local g = golden:read("grad." .. p.name)
      assert.is_true(distance(p.gradients[1], g) <= 1e-3 * math.max(largest(g), top / 1000), p.name)
    end
    adamw.step(params, state, {}, 1e-2, 1)
    optim.clear(params)
  end
  model:close()
end

describe("golden recurrent", function()
  for _, name in ipairs { "lstm", "gru" } do
    if system.exists(shared .. "/" .. name) then
      it(name .. " gives the reference's logits, gradients and losses", function() close_to_reference(shared .. "/" .. name) end)
    else
      pending(name .. ": " .. shared .. " is absent")
    end
  end
  for _, name in ipairs(system.list(own) or {}) do
    it(name .. " gives the reference's logits, gradients and losses", function() close_to_reference(own .. "/" .. name) end)
  end
end)
