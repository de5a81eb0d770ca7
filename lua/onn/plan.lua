-- The plan: what rests where, how large a micro-batch is, which tapes are kept, and what that costs in bytes, operations and
-- seconds, said before anything is loaded. Operations per token follow the usual count for LoRA training: 2 per weight forward,
-- 2 for the input's gradient where it is needed, 6 per adapter weight, causal attention at half its square.
local memory = require "onn.plan.memory"

local plan = {}

local function layer_set(model, layers)
  local set, count, lowest = {}, 0, math.huge
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" and (not layers or layers[stage.index]) then
      set[stage.index], count, lowest = true, count + 1, math.min(lowest, stage.index)
    end
  end
  return set, count, lowest
end

-- Sums of one block's products: weights, and weights per unit of rank in an adapter on all of them.
local function block_sizes(model)
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" then
      local weights, adapter = 0, 0
      for _, layer in ipairs(stage.layers) do weights, adapter = weights + layer.out * layer.into, adapter + layer.out + layer.into end
      return weights, adapter
    end
  end
end

-- The linear layers that get an adapter: {name, out, into} each.
local function adapted(model, set, targets)
  local list, wanted = {}, {}
  if type(targets) == "table" then for _, name in ipairs(targets) do wanted[name] = true end end
  if type(targets) == "string" then for name in targets:gmatch "[^,%s]+" do wanted[name] = true end end
  local all = targets == nil or wanted["all-linear"]
  for _, stage in ipairs(model.stages) do
    for _, layer in ipairs(set[stage.index] and stage.layers or {}) do
      if all or wanted[layer.name] or wanted[layer.name:match "[^.]+$"] then list[#list + 1] = layer end
    end
  end
  return list
end

-- opt: rank, layers (set or nil), seq_len, micro_batch, batch, recompute ("auto"|"on"|"off"), full, budget.
-- Returns {weights, adapter, optimizer, tape, working, peak, recompute, micro_batch, flops_per_token, trained_layers, ...}, bytes.
function plan.training(model, opt)
  local c = model.sizes
  local set, trained, lowest = layer_set(model, opt.layers)
  local block = block_sizes(model)
  local modules = opt.full and {} or adapted(model, set, opt.targets)
  local adapter = 0
  for _, layer in ipairs(modules) do adapter = adapter + (layer.out + layer.into) * opt.rank end
  local weights, state = memory.weights(model), memory.state(model, opt, modules)
  local loading = memory.loading(model)
  local parameters = opt.full and model:parameters() or adapter
  local first = opt.full and 0 or math.min(lowest, c.layers)
  local taped_blocks = c.layers - first
  local function need(micro, recompute)
    local bytes, tapes = memory.training(model, opt, { tokens = micro * opt.seq_len, recompute = recompute, lowest = first, trained = set })
    return weights + math.max(state + bytes, loading), tapes, bytes - tapes
  end
  local best
  local micros = opt.micro_batch and { opt.micro_batch } or {}
  if not opt.micro_batch then for m = opt.batch, 1, -1 do if opt.batch % m == 0 then micros[#micros + 1] = m end end end
  local modes = opt.recompute == "on" and { true } or opt.recompute == "off" and { false } or { false, true }
  local budget = opt.budget or math.huge
  for _, recompute in ipairs(modes) do
    for _, micro in ipairs(micros) do
      local peak, tape, working = need(micro, recompute)
      if not best or (best.peak > budget and peak < best.peak) then
        best = { peak = peak, tape = tape, working = working, micro_batch = micro, recompute = recompute }
      end
    end
    if best.peak <= budget then break end
  end
  local head = c.vocabulary * c.width
  local attention = 2 * opt.seq_len * c.heads * c.head_size
  local forward = c.layers * (2 * block + attention) + 2 * head + 2 * adapter
  local backward = taped_blocks * (2 * block + 2 * attention) + 2 * head + 4 * adapter
  if opt.full then backward = backward + c.layers * 2 * block + 2 * head end
  local again = best.recompute and taped_blocks * (2 * block + attention) + 2 * adapter or 0
  best.weights, best.adapter_parameters, best.state, best.trained_layers = weights, adapter, state, trained
  best.lowest, best.fits = trained > 0 and lowest or nil, best.peak <= budget
  best.flops_per_token = forward + backward + again
  best.bytes_per_step = 0 -- resident: nothing is streamed
  best.parameters = parameters
  return best
end

-- What generation needs: bytes of weights and of the cache for `tokens`, and bytes read per token.
function plan.generation(model, opt)
  local c, element = model.sizes, model.dtype == "bf16" and 2 or 4
  local weights = memory.weights(model)
  local tokens = opt.max_tokens or 256
  local cache = 2 * c.layers * c.kv_heads * c.head_size * element * tokens
  return { weights = weights, cache = cache, peak = weights + cache + 128 * c.vocabulary * 4, bytes_per_token = weights,
    dtype = model.dtype }
end

return plan
