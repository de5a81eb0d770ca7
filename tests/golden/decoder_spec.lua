-- Every decoder family against reference outputs: logits, LoRA gradients, five training losses, greedy ids; f32, and bf16's distance.
local adamw = require "onn.optim".adamw
local batch = require "onn.batch"
local compare = require "tests.golden.compare"
local generator = require "onn.generator"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local optim = require "onn.optim"
local program = require "onn.core.program"
local store = require "onn.core.store"
local support = require "tests.support"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local shared = program.home .. "/../shared/golden"
local families = { "llama", "llama_tied_bias", "llama3_rope", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma2", "gpt2", "gpt_neox",
  "opt", "bloom", "mixtral" }

-- Made by tests/golden/make_bf16.py. Rounding to bf16 moves these tiny random models by 1 to 10 % of the largest logit.
local bf16_bars = json.decode(support.read(program.home .. "/tests/golden/bf16.json"))

local largest, distance = compare.largest, compare.distance

describe("golden decoder", function()
  for _, family in ipairs(families) do
    local path = shared .. "/" .. family
    if not system.exists(path) then
      pending(family .. ": " .. shared .. " is absent")
    else
      describe(family, function()
        local golden, folder, ids
        local function open(dtype)
          local model = assert(Model.open(path, { dtype = dtype }))
          assert.same({}, model.missing)
          assert(model:load())
          return model
        end
        setup(function()
          golden = assert(store.open(path .. "/golden.safetensors"))
          folder = compare.adapter_directory(golden, support.scratch())
          ids = golden:read "input_ids"
        end)
        teardown(function() support.scratch_remove(folder) end)

        it("gives the reference's logits in f32, and in bf16 lies about as far from them as the reference's own bf16", function()
          local want = golden:read "logits"
          for dtype, bar in pairs { f32 = 1e-4, bf16 = 1.5 * bf16_bars[family] } do
            local model = open(dtype)
            local b = batch.from_ids(ids)
            local logits = model:forward(model:carry(b), {}).logits
            local off = distance(want, logits) / largest(want)
            assert.is_true(off <= bar, ("%s: %.3g, at most %.3g"):format(dtype, off, bar))
            model:close()
          end
        end)

        it("gives the reference's gradients and training losses", function()
          local model = open "f32"
          local adapter = assert(lora.load(model, folder))
          local params = lora.parameters(adapter)
          local b = batch.from_ids(ids)
          local state, losses = adamw.state(), {}
          for step = 1, 5 do
            losses[step] = sweep.gradient(model, { b }, { scale = 1 / b.supervised }) / b.supervised
            if step == 1 then
              local top = 0
              for _, name in ipairs(golden:names()) do if name:find "^grad%." then top = math.max(top, largest(golden:read(name))) end end
              for _, p in ipairs(params) do
                local want = golden:read("grad." .. p.name)
                assert.is_true(distance(want, p.gradients[1]) <= 1e-3 * math.max(largest(want), top / 1000), p.name)
              end
            end
            adamw.step(params, state, {}, 1e-2, 1)
            optim.clear(params)
          end
          local want = golden:read("train.losses"):totable()
          for step = 1, 5 do assert.is_true(math.abs(losses[step] - want[step]) <= 1e-4 * want[step], "step " .. step) end
          lora.remove(model, adapter)
          model:close()
        end)

        it("gives the same bits streamed through slots that hold a stage", function()
          local b, logits = batch.from_ids(ids), {}
          for i, ring in ipairs { false, { slots = 1 } } do
            local model = assert(Model.open(path, { dtype = "f32" }))
            assert(model:load(ring and { ring = ring } or nil))
            logits[i] = model:forward(model:carry(b), {}).logits
            model:close()
          end
          assert.equal(0, distance(logits[1], logits[2]))
        end)

        it("continues greedily as the reference does", function()
          local model = open "f32"
          local prompt, got = {}, {}
          local rows = ids:totable()
          for t = 1, 5 do prompt[t] = rows[1][t] end
          generator.run(model, { prompt }, {}, { max_tokens = 12, temperature = 0 }, function(_, id) got[#got + 1] = id end)
          assert.same(golden:read("greedy"):totable()[1], got)
          model:close()
        end)

        it("leaves no tensor behind", function()
          collectgarbage() collectgarbage()
          local before = tensors.memory().used
          local model = open "f32"
          local b = batch.from_ids(ids)
          local adapter = assert(lora.load(model, folder))
          lora.parameters(adapter)
          sweep.gradient(model, { b }, { scale = 1 })
          batch.free(b)
          lora.remove(model, adapter)
          model:close()
          collectgarbage() collectgarbage()
          assert.is_true(tensors.memory().used <= before + 2 ^ 20)
        end)
      end)
    end
  end
end)
