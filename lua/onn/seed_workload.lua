-- The workload behind the original's table, so that figures can be compared: the linear layers of 8 of phi-4's 40 blocks (no
-- attention, no norms), 32 tokens a sample, f32 arithmetic, mean-square loss on random hidden states, LoRA. And what training the
-- true model costs, which that table does not say.
local arch = require "onn.arch"
local core = require "onn.core.ops"
local lora = require "onn.nn.lora"
local linear = require "onn.nn.linear"
local Model = require "onn.model"
local ops = require "onn.ops"
local optim = require "onn.optim"
local plan = require "onn.plan"
local scope = require "onn.scope"
local system = require "onn.core.system"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local seed_workload = { tokens_per_sample = 32, layers = 8, rank = 8, batches = { 1, 8, 64, 128 },
  original = { device = "GTX 1650 4 GB", peak = 1.5e9,
    ms_per_sample = { [1] = 3261, [8] = 949, [64] = 516, [128] = 490 } } }

seed_workload.config = { model_type = "phi3", hidden_size = 5120, intermediate_size = 17920, num_hidden_layers = 40,
  num_attention_heads = 40, num_key_value_heads = 10, vocab_size = 100352, max_position_embeddings = 16384, rms_norm_eps = 1e-5,
  rope_theta = 250000, hidden_act = "silu", tie_word_embeddings = false }

local rows_at_once = 16 -- samples that go through together; gradients of all of a batch are added before its update

local function described() return assert(arch.describe(seed_workload.config)) end

-- Bytes of the weights of `layers` blocks, in bf16.
function seed_workload.bytes(layers)
  local total = 0
  for _, stage in ipairs(described().stages) do
    if stage.index == 0 then for _, layer in ipairs(stage.layers) do total = total + 2 * layer.out * layer.into end end
  end
  return total * layers
end

-- Blocks with random weights, kept in bf16 as phi-4's are; each has weights of its own, so that all of them are read.
function seed_workload.open(layers, seed)
  local model = { dtype = "f32", directory = "seed workload", stages = {} }
  local first
  for _, stage in ipairs(described().stages) do
    if stage.kind == "block" and stage.index < layers then
      stage.roles = {}
      for i, layer in ipairs(stage.layers) do
        if first then
          layer.weight = tensors.keep(first.layers[i].weight:clone())
        else
          layer.weight = scope(function()
            local bound = math.sqrt(3 / layer.into) -- keeps the size of what flows through
            return tensors.keep(core.uniform(tensors.new("f32", { layer.out, layer.into }), seed, layer.name, 0, -bound, bound):to "bf16")
          end)
        end
        stage.roles[layer.role] = layer
      end
      first = first or stage
      model.stages[#model.stages + 1] = stage
    end
  end
  function model:linear_layers()
    local list = {}
    for _, stage in ipairs(self.stages) do
      for _, layer in ipairs(stage.layers) do list[#list + 1] = { layer = layer, stage = stage } end
    end
    return list
  end
  function model:close()
    for _, item in ipairs(self:linear_layers()) do item.layer.weight:free() end
  end
  model.adapter = assert(lora.create(model, { rank = seed_workload.rank, alpha = 2 * seed_workload.rank, targets = "all-linear",
    seed = seed }))
  model.params = lora.parameters(model.adapter)
  model.optimizer = optim.adamw.state()
  return model
end

-- One product after another: queries go where attention's result would, the gate's half where their product would.
local function forward(model, x)
  local c, ctx = seed_workload.config, { training = true }
  for _, stage in ipairs(model.stages) do
    local r = stage.roles
    local q = ops.split(linear(r.qkv, x, ctx), { c.hidden_size, r.qkv.out - c.hidden_size })
    local gate = ops.split(linear(r.gate_up, linear(r.o, q, ctx), ctx), { c.intermediate_size, c.intermediate_size })
    x = linear(r.down, gate, ctx)
  end
  return x
end

-- Adds the gradients of one part of a batch; returns its sum of squares.
local function part(model, samples, elements, seed, at)
  local t = tape.new()
  local sum = scope(function()
    local shape = { samples * seed_workload.tokens_per_sample, seed_workload.config.hidden_size }
    local x = core.normal(tensors.new("f32", shape), seed, "seed_workload.x", at, 1)
    local target = core.normal(tensors.new("f32", shape), seed, "seed_workload.y", at, 1)
    t:watch(x)
    local y = t:run(forward, model, x)
    local difference = core.binary(y, target, "sub")
    local squares = core.total(difference, true)
    t:backward({ [y] = core.affine(difference, 2 / elements, 0) })
    return squares
  end)
  t:release()
  return sum
end

-- One update of `batch` samples; returns its loss and seconds.
function seed_workload.update(model, batch, seed)
  local began, sum = system.now(), 0
  local elements = batch * seed_workload.tokens_per_sample * seed_workload.config.hidden_size
  for first = 0, batch - 1, rows_at_once do
    sum = sum + part(model, math.min(rows_at_once, batch - first), elements, seed, first * seed_workload.tokens_per_sample)
  end
  optim.adamw.step(model.params, model.optimizer, { betas = { 0.9, 0.999 }, weight_decay = 0 }, 1e-4, 1)
  optim.clear(model.params)
  return sum / elements, system.now() - began
end

-- Operations of one sample: forward and the input's gradient of every product, and the adapters.
function seed_workload.flops_per_sample(layers)
  local weights, adapter = seed_workload.bytes(layers) / 2, 0
  for _, stage in ipairs(described().stages) do
    if stage.index == 0 then for _, layer in ipairs(stage.layers) do adapter = adapter + layer.out + layer.into end end
  end
  return seed_workload.tokens_per_sample * (4 * weights + 6 * adapter * seed_workload.rank * layers)
end

-- What training the true model costs on samples of that length: all 40 blocks forward, attention, head and loss; the same 8 blocks
-- trained, of which the lowest is the first, so gradients pass through all of it. {parameters, bytes (bf16), flops_per_sample}.
function seed_workload.true_model()
  local d = described()
  local parameters, bytes = 0, {}
  for _, stage in ipairs(d.stages) do
    for _, t in ipairs(stage.tensors) do
      local n = 1
      for _, size in ipairs(t.shape) do n = n * size end
      parameters, bytes[t.name] = parameters + n, 2 * n
    end
  end
  local layers = {}
  for _, index in ipairs { 0, 1, 2, 3, 36, 37, 38, 39 } do layers[index] = true end
  local store = { info = function(_, name) return { bytes = bytes[name], dtype = "BF16" } end }
  local model = Model.described(d, "f32", store)
  local costs = plan.training(model, { rank = seed_workload.rank, layers = layers, batch = 1, micro_batch = 1,
    seq_len = seed_workload.tokens_per_sample, recompute = "off" })
  return { parameters = parameters, bytes = 2 * parameters, flops_per_sample = costs.flops_per_token * seed_workload.tokens_per_sample }
end

return seed_workload
