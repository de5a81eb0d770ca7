-- Convolutional nets against reference outputs: logits in both modes, gradients, running statistics, training losses; streamed: the same bits.
local compare = require "tests.golden.compare"
local full = require "onn.nn.full"
local Model = require "onn.model"
local optim = require "onn.optim"
local program = require "onn.core.program"
local store = require "onn.core.store"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

-- ONN_GOLDEN names a folder with more of the same kind (tests/golden/make_cnn_golden.py makes them).
local folders = { program.home .. "/../shared/golden/resnet", program.home .. "/../shared/golden/vgg",
  program.home .. "/../shared/golden/mobilenet_v2" }
local more = os.getenv "ONN_GOLDEN"
for _, name in ipairs(more and system.list(more) or {}) do folders[#folders + 1] = more .. "/" .. name end

local largest, distance = compare.largest, compare.distance

local function bits(t) return (require "onn.core.hash").data(t:contiguous()) end

for _, path in ipairs(folders) do
  describe("golden " .. path:match "[^/]+$", function()
    if not system.exists(path .. "/golden.safetensors") then
      pending(path .. " is absent")
      return
    end
    local golden, batch
    local function open(ring)
      local model = assert(Model.open(path))
      assert.same({}, model.missing)
      assert(model:load { ring = ring })
      return model
    end
    local function logits(model, ctx) return model:forward(model:carry(batch), ctx or {}).logits end
    setup(function()
      golden = assert(store.open(path .. "/golden.safetensors"))
      batch = { x = golden:read "x", labels = golden:read("labels"):to "i32" }
      local n = batch.x:size(1)
      local rows = {}
      for i = 1, n do rows[i] = i - 1 end
      batch.rows, batch.tokens, batch.supervised = tensors.from_table(rows, "i64"), n, n
    end)

    it("gives the reference's logits, and the same bits streamed through two slots", function()
      local model, want = open(), golden:read "logits"
      local got = logits(model)
      local off = distance(want, got) / largest(want)
      assert.is_true(off <= 1e-4, ("%.3g"):format(off))
      for threads = 1, 3, 2 do
        tensors.set_threads(threads)
        local streamed = open { slots = 2 }
        assert.equal(bits(got), bits(logits(streamed)))
        streamed:close()
      end
      model:close()
    end)

    it("trains as the reference does: logits, gradients, running statistics, losses", function()
      local model = open()
      local params = full.parameters(model)
      model.net.train_mode(model)
      local want = golden:read "logits.train"
      local off = distance(want, logits(model, { training = true, repeated = true })) / largest(want)
      assert.is_true(off <= 1e-4, ("logits.train %.3g"):format(off))
      local by_name, top = {}, 0
      for _, p in ipairs(params) do by_name[p.name] = p.gradients[1] end
      for _, s in ipairs(model.net.state(model)) do by_name[s.name] = s.value end
      for _, name in ipairs(golden:names()) do if name:find "^grad%." then top = math.max(top, largest(golden:read(name))) end end
      local state, losses = optim.sgd.state(), {}
      local expected = golden:read("train.losses"):totable()
      for step = 1, #expected do
        losses[step] = sweep.gradient(model, { batch }, { scale = 1 / batch.supervised, recompute = step == 2 }) / batch.supervised
        if step == 1 then
          for _, name in ipairs(golden:names()) do
            local kind, key = name:match "^(%a+)%.(.*)$"
            if kind == "grad" or kind == "after" then
              local reference = golden:read(name)
              local far = distance(reference, by_name[key])
              assert.is_true(far <= 1e-3 * math.max(largest(reference), kind == "grad" and top / 1000 or 0), ("%s: %.3g of %.3g"):format(name, far,
                largest(reference)))
            end
          end
        end
        optim.sgd.step(params, state, {}, 0.01, 1)
        optim.clear(params)
      end
      for step, loss in ipairs(expected) do
        assert.is_true(math.abs(losses[step] - loss) <= 1e-4 * math.max(loss, 0.01), ("step %d: %.7g, expected %.7g"):format(step, losses[step], loss))
      end
      model:close()
    end)
  end)
end
