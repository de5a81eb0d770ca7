-- Models whose mixers carry states against reference outputs (tests/golden/make_state_space.py): logits, gradients of adapters, greedy ids.
local batch = require "onn.batch"
local compare = require "tests.golden.compare"
local core = require "onn.core.ops"
local full = require "onn.nn.full"
local generator = require "onn.generator"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local program = require "onn.core.program"
local reference = require "tests.kernels.reference"
local store = require "onn.core.store"
local support = require "tests.support"
local sweep = require "onn.sweep"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local largest, distance = compare.largest, compare.distance

describe("golden state space", function()
  for _, family in ipairs { "mamba", "falcon_mamba", "mamba2", "lfm2", "falcon_h1", "jamba", "qwen3_5_text" } do
    describe(family, function()
      local path = program.home .. "/tests/golden/state_space/" .. family
      local golden, folder, ids
      local function open(dtype)
        local model = assert(Model.open(path, { dtype = dtype }))
        assert.same({}, model.missing)
        assert(model:load())
        return model
      end
      setup(function()
        golden = assert(store.open(path .. "/golden.safetensors"))
        folder, ids = support.scratch(), golden:read "input_ids"
        assert(compare.adapter_directory(golden, folder))
      end)
      teardown(function() support.scratch_remove() end)

      it("gives the reference's logits", function()
        local want = golden:read "logits"
        for dtype, bar in pairs { f32 = 1e-4, bf16 = 0.1 } do
          local model = open(dtype)
          local logits = model:forward(model:carry(batch.from_ids(ids)), {}).logits
          local off = distance(want, logits) / largest(want)
          assert.is_true(off <= bar, ("%s: %.3g, at most %.3g"):format(dtype, off, bar))
          model:close()
        end
      end)

      it("gives the reference's loss and gradients, with the same bits whatever the micro-batches", function()
        local model = open "f32"
        local adapter = assert(lora.load(model, folder))
        local params, b = lora.parameters(adapter), batch.from_ids(ids)
        local loss = sweep.gradient(model, { b }, { scale = 1 / b.supervised }) / b.supervised
        assert.is_true(math.abs(loss - golden:read("loss"):item()) <= 1e-5 * loss)
        local top, together = 0, {}
        for _, name in ipairs(golden:names()) do if name:find "^grad%." then top = math.max(top, largest(golden:read(name))) end end
        for k, p in ipairs(params) do
          local want = golden:read("grad." .. p.name)
          assert.is_true(distance(want, p.gradients[1]) <= 1e-3 * math.max(largest(want), top / 1000), p.name)
          together[k] = reference.bits(p.gradients[1])
          p.gradients[1]:fill(0)
        end
        local micros = { batch.from_ids(ids:narrow(1, 1, 1)), batch.from_ids(ids:narrow(1, 2, 1)) }
        sweep.gradient(model, micros, { scale = 1 / b.supervised })
        for k, p in ipairs(params) do assert.equal(together[k], reference.bits(p.gradients[1]), p.name) end
        lora.remove(model, adapter)
        model:close()
      end)

      it("gives gradients to every weight, that say how the loss changes along them", function()
        local model = open "f32"
        local params, b = full.parameters(model), batch.from_ids(ids)
        sweep.gradient(model, { b }, { scale = 1 })
        local gradients = {} -- copies: each loss below adds to them again
        for i, p in ipairs(params) do
          gradients[i] = p.gradients[1]:clone()
          for k = 2, #p.gradients do core.binary(gradients[i], p.gradients[k], "add", gradients[i]) end
        end
        for i, p in ipairs(params) do
          local kept, along = p.value:clone(), gradients[i]
          local length = math.sqrt((core.total(along:view { 1, along:numel() }, true)))
          assert.is_true(length > 0, p.name)
          local step, loss = 0.025 / length, {} -- which moves the loss, about 100, by 0.025 either way
          for k, side in ipairs { 1, -1 } do
            p.value:copy(core.binary(kept, core.affine(along, side * step / length, 0), "add"))
            loss[k] = sweep.gradient(model, { b }, { scale = 1 })
          end
          p.value:copy(kept)
          local slope = (loss[1] - loss[2]) / (2 * step)
          assert.is_true(math.abs(slope - length) <= 5e-3 * length, ("%s: %g along a gradient of %g"):format(p.name, slope, length))
        end
        for _, p in ipairs(params) do tape.forget(p.value) end
        model:close()
      end)

      it("continues greedily as the reference does, several sequences at once", function()
        local model = open "f32"
        local rows, got = ids:totable(), { {}, {} }
        local first, second = {}, {}
        for t = 1, 5 do first[t] = rows[1][t] end
        for t = 1, 9 do second[t] = rows[2][t] end
        generator.run(model, { second, first }, {}, { max_tokens = 12, temperature = 0 }, function(s, id) table.insert(got[s], id) end)
        assert.same(golden:read("greedy"):totable()[1], got[2])
        model:close()
      end)

      it("leaves no tensor behind", function()
        collectgarbage() collectgarbage()
        local before = tensors.memory().used
        local model = open "f32"
        generator.run(model, { { 5, 6, 7 } }, {}, { max_tokens = 3, temperature = 0 }, function() end)
        model:close()
        collectgarbage() collectgarbage()
        assert.is_true(tensors.memory().used <= before)
      end)
    end)
  end

  it("says what does not fit", function()
    local arch = require "onn.arch"
    local function refuses(pattern, config)
      local described, wrong = arch.describe(config)
      assert.is_nil(described)
      assert.matches(pattern, table.concat(wrong, "; "))
    end
    local base = { model_type = "mamba2", vocab_size = 10, hidden_size = 16, num_hidden_layers = 1, num_heads = 4, head_dim = 8, n_groups = 2 }
    assert(arch.describe(base))
    local function but(key, value)
      local c = {}
      for k, v in pairs(base) do c[k] = v end
      c[key] = value
      return c
    end
    refuses("inner width 32", but("head_dim", 9))
    refuses("multiple of 'n_groups' 3", but("n_groups", 3))
    refuses("'conv_kernel' should be", but("conv_kernel", 40))
    refuses("'time_step_limit'", but("time_step_limit", { 1, 0.5 }))
    refuses("'time_step_limit'", but("time_step_limit", "none"))
    refuses("'hidden_act' 'relu'", but("hidden_act", "relu"))
    refuses("no whole width", but("expand", 0.3))
    refuses("'time_step_rank'", { model_type = "mamba", vocab_size = 10, hidden_size = 16, num_hidden_layers = 1, time_step_rank = 0 })
  end)
end)
