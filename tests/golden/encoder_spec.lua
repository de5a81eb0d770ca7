-- Encoders against reference outputs: logits, the body's output, LoRA gradients and five training losses; in memory and streamed.
local adamw = require "onn.optim".adamw
local compare = require "tests.golden.compare"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local optim = require "onn.optim"
local program = require "onn.core.program"
local store = require "onn.core.store"
local support = require "tests.support"
local sweep = require "onn.sweep"
local system = require "onn.core.system"

local shared = program.home .. "/../shared/golden"

local largest, distance = compare.largest, compare.distance

describe("golden encoder", function()
  for _, family in ipairs { "bert", "roberta" } do
    local path = shared .. "/" .. family
    if not system.exists(path) then
      pending(family .. ": " .. shared .. " is absent")
    else
      for _, how in ipairs { { name = "in memory" }, { name = "streamed", ring = { slots = 2 } } } do
        describe(family .. ", " .. how.name, function()
          local golden, folder, model
          setup(function()
            golden, folder = assert(store.open(path .. "/golden.safetensors")), support.scratch()
            compare.adapter_directory(golden, folder)
            model = assert(Model.open(path, { dtype = "f32" }))
            assert.same({}, model.missing)
            assert(model:load { ring = how.ring })
          end)
          teardown(function()
            model:close()
            support.scratch_remove()
          end)
          local function batch(labels) return assert(model.net.batch(model.sizes, { input_ids = golden:read "input_ids", labels = labels })) end

          it("gives the reference's logits and hidden states", function()
            local carry = model:forward(model:carry(batch()), { keep_hidden = true })
            for name, got in pairs { logits = carry.logits, last_hidden_state = carry.last_hidden } do
              local want = golden:read(name)
              assert.is_true(distance(want, got) <= 1e-4 * largest(want), name)
            end
          end)

          it("gives the reference's gradients and training losses", function()
            local adapter = assert(lora.load(model, folder))
            local params, b = lora.parameters(adapter), batch(golden:read "labels")
            local state, losses, top, seen = adamw.state(), {}, 0, 0
            for _, name in ipairs(golden:names()) do if name:find "^grad%." then top, seen = math.max(top, largest(golden:read(name))), seen + 1 end end
            assert.equal(seen, #params)
            for step = 1, 5 do
              losses[step] = sweep.gradient(model, { b }, { scale = 1 / b.supervised }) / b.supervised
              for _, p in ipairs(step == 1 and params or {}) do
                local want = golden:read("grad." .. p.name)
                assert.is_true(distance(want, p.gradients[1]) <= 1e-3 * math.max(largest(want), top / 1000), p.name)
              end
              adamw.step(params, state, {}, 1e-2, 1)
              optim.clear(params)
            end
            local want = golden:read("train.losses"):totable()
            for step = 1, 5 do assert.is_true(math.abs(losses[step] - want[step]) <= 1e-4 * want[step], "step " .. step) end
            lora.remove(model, adapter)
          end)
        end)
      end
    end
  end
end)
