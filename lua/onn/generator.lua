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

-- Runs a prompt's ids (Lua table) through slot `slot`; returns logits f32 (1, vocabulary) after the last.
local function prefill(model, cache, slot, ids, adapter_seed)
  local logits
  for first = 1, #ids, PREFILL do
    local n = math.min(PREFILL, #ids - first + 1)
    local last = first + n - 1 == #ids
    logits = scope(function()
      local part = {}
      for i = 1, n do part[i] = ids[first + i - 1] end
      local before = cache.lengths[slot]
      cache:prefill(slot, n)
      local carry = model:carry { ids = tensors.from_table(part, "i32"), positions = tensors.from_table(range(before, n), "i32"),
        starts = cache.q_starts, longest = before + n }
      local ctx = { cache = cache, seed = adapter_seed }
      ctx.only = function(x) return x:narrow(1, n, 1) end
      carry = model:forward(carry, ctx)
      cache:advance()
      return last and carry.logits or nil
    end)
  end
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
-- emit(sequence, id) is called for every new token but the stopping one. options: see onn.sampler, and max_tokens.
-- Returns {prompt_tokens, new_tokens, prefill_seconds, decode_seconds, interrupted}.
function generator.run(model, prompts, stop, options, emit)
  local now = require("onn.core.system").now
  local cache = Cache.new(model, #prompts, 64)
  local report = { prompt_tokens = 0, new_tokens = 0, decoded = 0 }
  local began = now()
  local state, open = {}, #prompts
  local ok, failure = pcall(function()
    for s, ids in ipairs(prompts) do
      local recent = {}
      for i = 1, #ids do recent[ids[i]] = true end
      state[s] = { recent = recent, logits = prefill(model, cache, s, ids) }
      report.prompt_tokens = report.prompt_tokens + #ids
    end
    report.prefill_seconds = now() - began
    began = now()
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
      local logits = step(model, cache, ids)
      for s = 1, #state do state[s].logits = logits:narrow(1, s, 1) end
      logits:free()
      report.decoded = report.decoded + open
    end
    report.decode_seconds = now() - began
  end)
  cache:free()
  if not ok then error(failure, 0) end
  return report
end

return generator
