-- The plan: what rests where, how large a micro-batch is, which tapes are kept, and what that costs in bytes, operations and
-- seconds, said before anything is loaded. Operations per token follow the usual count for LoRA training: 2 per weight forward,
-- 2 for the input's gradient where it is needed, 6 per adapter weight, causal attention at half its square.
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

-- Bytes that the weights take on the device in the model's arithmetic.
function plan.weight_bytes(model)
  local total = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      local n = 1
      for _, size in ipairs(t.shape) do n = n * size end
      local stored = model.store:info(t.name)
      local each = t.vector and 4 or (model.dtype == "bf16" and 2 or stored.bytes / n)
      total = total + n * each
    end
  end
  return total
end

-- Elements per token that the tape of one block holds: what the rules in autograd/rules.lua save.
local function tape_elements(c)
  local q, kv = c.heads * c.head_size, c.kv_heads * c.head_size
  local elements = 2 * c.width       -- the two norms; x and the middle, in f32, are counted apart
    + (q + 2 * kv) + q               -- rotated q and k, v, and what attention gives
    + 3 * c.inner                    -- gate, up and their product
  if c.fused or c.qk_norm then elements = elements + q + 2 * kv + 2 * c.inner end
  return elements
end

-- opt: rank, layers (set or nil), seq_len, micro_batch, batch, recompute ("auto"|"on"|"off"), full, budget.
-- Returns {weights, adapter, optimizer, tape, working, peak, recompute, micro_batch, flops_per_token, trained_layers, ...}, bytes.
function plan.training(model, opt)
  local c, element = model.sizes, model.dtype == "bf16" and 2 or 4
  local _, trained, lowest = layer_set(model, opt.layers)
  local block, adapter_unit = block_sizes(model)
  local adapter = opt.full and 0 or adapter_unit * opt.rank * trained
  local weights = plan.weight_bytes(model)
  local parameters = opt.full and model:parameters() or adapter
  local state = parameters * 16 + (model.dtype == "bf16" and not opt.full and parameters * 2 or 0)
  local taped_blocks = opt.full and c.layers or c.layers - lowest
  local ranks = opt.full and 0 or opt.rank * 7
  local per_token = (tape_elements(c) + ranks) * element + 4 * (c.heads + 2) + 2 * c.width * 4
  local widest = math.max(3 * c.inner, c.heads * c.head_size + 2 * c.kv_heads * c.head_size, c.width)
  -- beside the tapes: gradients and outputs of one block, f32 tiles of products, the head's tile of logits
  local head_tile = math.min(128, opt.seq_len) * c.vocabulary * (4 + element)
  local full_head = opt.full and c.vocabulary * c.width * 4 or 0
  local function need(micro, recompute)
    local tokens = micro * opt.seq_len
    local tapes = recompute and (per_token + taped_blocks * c.width * 4) or per_token * taped_blocks
    local working = tokens * (6 * widest + 8 * c.width) * element + head_tile + full_head + 16 * 2 ^ 20
    local widened = model.dtype == "f32" and 2 * math.max(c.inner * c.width * 2, 8 * 2 ^ 20) * 4 or 0
    return weights + state + tokens * tapes + working + widened, tokens * tapes, working + widened
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
  local weights = plan.weight_bytes(model)
  local tokens = opt.max_tokens or 256
  local cache = 2 * c.layers * c.kv_heads * c.head_size * element * tokens
  return { weights = weights, cache = cache, peak = weights + cache + 128 * c.vocabulary * 4, bytes_per_token = weights,
    dtype = model.dtype }
end

return plan
