-- State and constants among a store's tensors: running statistics, counters, rotary tables, causal masks. They are no parameters.
local state = {}

local words = { running_mean = true, running_var = true, num_batches_tracked = true, inv_freq = true, original_inv_freq = true,
  position_ids = true, masked_bias = true, token_type_ids = true, relative_position_index = true, attn_mask = true }

-- By its name or its dtype alone: integers and truth values are never trained.
function state.named(name, info)
  local last = name:match "[^.]+$"
  if words[last] then return true end
  return (last == "bias" and #info.shape == 4) or info.dtype == "BOOL" or info.dtype == "I64"
end

local function is_mask(t)
  local s = t.shape
  return #s == 4 and s[1] == 1 and s[2] == 1 and s[3] == s[4] and s[3] >= 16
end

local function is_counter(t) return t.dtype == "I64" and (#t.shape == 0 or #t.shape == 1 and t.shape[1] == 1) end

local function module_of(name) return name:match "^(.*)%.[^.]+$" or "" end

-- Batch norms under names that say nothing: each has a counter and four vectors of one length, of which two are statistics.
-- Returns how many counters found no such vectors.
local function statistics(tensors)
  local counters, lengths, sizes = 0, {}, {}
  for _, t in ipairs(tensors) do
    if is_counter(t) then counters = counters + 1 end
    if #t.shape == 1 and not is_counter(t) then
      if t.buffer then return 0 end -- their names were enough
      local size = t.shape[1]
      if not lengths[size] then lengths[size], sizes[#sizes + 1] = {}, size end
      table.insert(lengths[size], t)
    end
  end
  if counters == 0 then return 0 end
  local norms = 0
  for _, size in ipairs(sizes) do norms = norms + math.floor(#lengths[size] / 4) end
  if norms ~= counters then return counters end
  for _, size in ipairs(sizes) do
    local list = lengths[size]
    table.sort(list, function(a, b) return a.name < b.name end)
    for i = 0, math.floor(#list / 4) - 1 do
      for k = 3, 4 do list[4 * i + k].buffer, list[4 * i + k].guessed = true, true end
    end
  end
  return 0
end

-- Sets `buffer` of the tensors that are state; `guessed` where the names do not tell which of a norm's four vectors are.
function state.mark(tensors)
  local modules, order = {}, {}
  for _, t in ipairs(tensors) do
    t.buffer = state.named(t.name, t) or is_mask(t)
    local name = module_of(t.path)
    if not modules[name] then modules[name], order[#order + 1] = {}, name end
    table.insert(modules[name], t)
  end
  local left = {}
  for _, name in ipairs(order) do
    if statistics(modules[name]) > 0 then for _, t in ipairs(modules[name]) do left[#left + 1] = t end end
  end
  if #left > 0 and statistics(left) > 0 then
    -- counters and vectors may lie in modules of their own
    local whole = {}
    for _, t in ipairs(tensors) do if not t.guessed and (is_counter(t) or #t.shape == 1) then whole[#whole + 1] = t end end
    statistics(whole)
  end
end

return state
