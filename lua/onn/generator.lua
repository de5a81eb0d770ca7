-- Text from a model: prompts go through in chunks, then every sequence grows by one token a step, all together.
local Cache = require "onn.cache"
local sampler = require "onn.sampler"
local scope = require "onn.scope"
local signals = require "onn.core.signals"
local tensors = require "onn.core.tensor"

local generator = {}

local PREFILL = 512 -- tokens of a prompt that go through together

local function range(first, count)
  local t = {}
  for i = 1, count do t[i] = first + i - 1 end
  return t
end

-- One part of a prompt as an item of Model:forward_all: ids first..first + n - 1. Of the last part the last row's logits are wanted.
local function prompt_part(model, cache, slot, ids, first, n)
  local part, taken = cache:part(slot, n), {}
  for i = 1, n do taken[i] = ids[first + i - 1] end
  local carry = model:carry { ids = tensors.keep(tensors.from_table(taken, "i32")),
    positions = tensors.keep(tensors.from_table(range(part.before, n), "i32")), starts = part.q_starts, longest = #ids }
  return { carry = carry, slot = slot, last = first + n - 1 == #ids,
    ctx = { cache = part, only = function(x) return x:narrow(1, n, 1) end } }
end

-- Runs prompts' ids (Lua tables; prompt s fills slot s of the cache) through the model, stage by stage, as many tokens at once as
-- `together` allows (default: all of them). Returns for each prompt logits f32 (1, vocabulary) after its last token.
local function prefill(model, cache, prompts, together)
  local logits, items, tokens, longest = {}, {}, 0, 0
  for _, ids in ipairs(prompts) do longest = math.max(longest, #ids) end
  cache:reserve(longest)
  local function flush()
    if #items == 0 then return end
    model:forward_all(items)
    for _, item in ipairs(items) do
      if item.last then logits[item.slot] = item.carry.logits else item.carry.logits:free() end
      local input = item.carry.last_hidden
      if input and input ~= item.carry.hidden then input:free() end
      item.carry.ids:free()
      item.carry.positions:free()
      item.ctx.cache:free()
    end
    items, tokens = {}, 0
  end
  for slot, ids in ipairs(prompts) do
    for first = 1, #ids, PREFILL do
      local n = math.min(PREFILL, #ids - first + 1)
      if tokens + n > (together or math.huge) then flush() end
      items[#items + 1], tokens = prompt_part(model, cache, slot, ids, first, n), tokens + n
    end
  end
  flush()
  return logits
end

-- One step for all slots: ids (Lua table, one per slot) -> logits f32 (slots, vocabulary).
local function step(model, cache, ids)
  return scope(function()
    cache:decode()
    local longest = math.max(unpack(cache.lengths)) + 1
    local positions = {}
    for s = 1, #ids do positions[s] = cache.lengths[s] end
    local carry = model:carry { ids = tensors.from_table(ids, "i32"), positions = tensors.from_table(positions, "i32"), longest = longest }
    carry = model:forward(carry, { cache = cache, decode = true })
    cache:advance()
    return carry.logits
  end)
end
generator.prefill, generator.step = prefill, step

-- Continues prompts (each a Lua table of ids) until `stop[id]`, options.max_tokens, or emit() returns true for that sequence.
-- emit(sequence, id) is called for every new token but the stopping one. options: see onn.sampler, max_tokens, and together (tokens of
-- prompts that go through the model at once).
-- Returns {prompt_tokens, new_tokens, decoded, prefill_seconds, decode_seconds, decode_bytes (read from the store), interrupted}.
function generator.run(model, prompts, stop, options, emit)
  local now = require("onn.core.system").now
  local cache = (model.net.cache or Cache.new)(model, #prompts, 64)
  local report = { prompt_tokens = 0, new_tokens = 0, decoded = 0 }
  local began = now()
  local state, open = {}, #prompts
  local ok, failure = pcall(function()
    local logits = prefill(model, cache, prompts, options.together)
    for s, ids in ipairs(prompts) do
      local recent = {}
      for i = 1, #ids do recent[ids[i]] = true end
      state[s] = { recent = recent, logits = logits[s] }
      report.prompt_tokens = report.prompt_tokens + #ids
    end
    report.prefill_seconds = now() - began
    began = now()
    local streamed = model:streamed()
    local limit = options.max_tokens or 128
    for position = 1, limit do
      local ids = {}
      for s, one in ipairs(state) do
        local row = one.logits
        ids[s] = 0
        if not one.done then
          local id = sampler.choose(row:view { row:numel() }, options, one.recent, (s - 1) * 2 ^ 24 + position)
          report.new_tokens = report.new_tokens + 1
          one.recent[id] = true
          if stop[id] or emit(s, id) then one.done, open = true, open - 1 else ids[s] = id end
        end
        row:free()
      end
      if open == 0 or position == limit then break end
      if signals.pending() then report.interrupted = true break end
      local rows = step(model, cache, ids)
      for s = 1, #state do state[s].logits = rows:narrow(1, s, 1) end
      rows:free()
      report.decoded = report.decoded + open
    end
    report.decode_seconds, report.decode_bytes = now() - began, model:streamed() - streamed
  end)
  cache:free()
  if not ok then error(failure, 0) end
  return report
end

return generator
