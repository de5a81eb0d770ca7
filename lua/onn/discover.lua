-- Stages of a model by its tensors' names and shapes alone, for any architecture: what repeats under a number is the stack, what
-- comes before and after it are the stem and the head. Enough to analyse a model, not to run it.
local discover = {}

-- Tensors that are state or constants, not parameters: running statistics, rotary tables, causal masks.
function discover.is_buffer(name, info)
  local last = name:match "[^.]+$"
  if last == "running_mean" or last == "running_var" or last == "num_batches_tracked" or last == "inv_freq"
    or last == "position_ids" or last == "masked_bias" or last == "token_type_ids" then return true end
  return (last == "bias" and #info.shape == 4) or info.dtype == "BOOL" or info.dtype == "I64"
end

local stem_words = { "emb", "wte", "wpe", "^stem", "^conv1$", "^bn1$", "patch", "^conv_stem", "relative_position" }

local function module_of(name) return name:match "^(.*)%.[^.]+$" or name end

local function is_stem(module)
  for _, word in ipairs(stem_words) do if module:find(word) then return true end end
  return false
end

-- "model.layers.3.mlp.up.weight" -> "model.layers", 3; "rnn.weight_hh_l1_reverse" -> "rnn.layer", 1; else nil
local function position(name)
  local module, layer = name:match "^(.-)%.?weight_[ih][ihr]_l(%d+)"
  if not layer then module, layer = name:match "^(.-)%.?bias_[ih]h_l(%d+)" end
  if layer then return (module == "" and "" or module .. ".") .. "layer", tonumber(layer) end
  local parts = {}
  for part in name:gmatch "[^.]+" do
    if part:find "^%d+$" and #part < 7 then return table.concat(parts, "."), tonumber(part) end
    parts[#parts + 1] = part
  end
end

-- The order of two names, numbers in them by value: layer2.10 comes after layer2.9.
local function natural_order(a, b)
  local function padded(text) return (text:gsub("%d+", function(n) return ("%09d"):format(tonumber(n)) end)) end
  return padded(a) < padded(b)
end

-- Numbered modules after the body, such as a classifier's layers, belong to the head.
local function is_head_stack(prefix) return prefix:find "classifier" or prefix:find "^head" or prefix:find "fc" or prefix:find "cls%." end

local function stage_kind(tensors)
  for _, t in ipairs(tensors) do
    if t.name:find "weight_hh_l%d" then return "recurrent" end
    if #t.shape == 4 then return "convolution" end
  end
  return "block"
end

-- names: all tensors' names; info(name) -> {shape, dtype, bytes}. Returns stages {name, kind, index, tensors = {{name, shape,
-- dtype, bytes}}}: at most one stem, the numbered ones (index 0, 1, ...), at most one head; and the stacks {name, count}.
function discover.stages(names, info)
  local stacks, stem, head = {}, {}, {}
  local order = {}
  for _, name in ipairs(names) do
    local one = info(name)
    local t = { name = name, shape = one.shape, dtype = one.dtype, bytes = one.bytes }
    local prefix, number = position(name)
    local module = module_of(name)
    if prefix and not is_head_stack(prefix) and not is_stem(prefix) then
      local stack = stacks[prefix]
      if not stack then
        stack = { name = prefix, numbers = {}, stages = {} }
        stacks[prefix], order[#order + 1] = stack, stack
      end
      local stage = stack.stages[number]
      if not stage then
        stage = { name = prefix == "" and tostring(number) or ("%s.%d"):format(prefix, number), tensors = {} }
        stack.stages[number], stack.numbers[#stack.numbers + 1] = stage, number
      end
      stage.tensors[#stage.tensors + 1] = t
    elseif is_stem(module) then
      stem[#stem + 1] = t
    else
      head[#head + 1] = t
    end
  end
  table.sort(order, function(a, b) return natural_order(a.name, b.name) end)
  local stages, index = {}, 0
  if #stem > 0 then stages[1] = { name = module_of(stem[1].name), kind = "stem", tensors = stem } end
  for _, stack in ipairs(order) do
    table.sort(stack.numbers)
    for _, number in ipairs(stack.numbers) do
      local stage = stack.stages[number]
      stage.kind, stage.index, index = stage_kind(stage.tensors), index, index + 1
      stages[#stages + 1] = stage
    end
    stack.count = #stack.numbers
  end
  if #head > 0 then stages[#stages + 1] = { name = module_of(head[#head].name), kind = "head", tensors = head } end
  return stages, order
end

local roles = {
  { "experts", "experts?%." }, { "experts", "router" }, { "experts", "%.gate%.weight$" }, { "norm", "norm" }, { "norm", "ln_" },
  { "norm", "%.bn%d*" }, { "norm", "^bn%d*" }, { "norm", "LayerNorm" }, { "norm", "running_" },
  { "recurrent", "_l%d" }, { "embedding", "emb" }, { "embedding", "wte" }, { "embedding", "wpe" },
  { "attention", "attn" }, { "attention", "attention" }, { "attention", "query" }, { "mlp", "mlp" }, { "mlp", "fc%d" }, { "mlp", "dense_" },
  { "mlp", "intermediate" }, { "mlp", "%.output%.dense" }, { "mlp", "feed_forward" }, { "mlp", "ffn" },
}

-- What a tensor belongs to: embedding, attention, mlp, experts, norm, convolution, recurrent, head, other.
function discover.role(t, kind)
  for _, role in ipairs(roles) do if t.name:find(role[2]) then return role[1] end end
  if #t.shape == 4 then return "convolution" end
  if kind == "head" then return "head" end
  if kind == "stem" or kind == "embedding" then return "embedding" end
  if kind == "convolution" and #t.shape == 1 then return "norm" end
  return "other"
end

-- What kind of network the stages are: transformer, cnn, rnn, hybrid, mlp, or unknown.
function discover.type(stages)
  local has = {}
  for _, stage in ipairs(stages) do
    for _, t in ipairs(stage.tensors) do
      local role = discover.role(t, stage.kind)
      has[role] = true
      if #t.shape == 2 then has.matrix = true end
    end
  end
  if has.attention and has.convolution then return "hybrid" end
  if has.attention then return "transformer" end
  if has.convolution then return "cnn" end
  if has.recurrent then return "rnn" end
  return has.matrix and "mlp" or "unknown"
end

-- Distinct widths of what flows between stages, in order: of norms and matrices' outputs, convolutions' channels, recurrent states.
function discover.widths(stages)
  local list = {}
  for _, stage in ipairs(stages) do
    if stage.index then
      local width
      local counts, best = {}, 0
      for _, t in ipairs(stage.tensors) do
        if stage.kind == "recurrent" then
          width = t.name:find "weight_hh" and t.shape[2] or width
        elseif stage.kind == "convolution" then
          if #t.shape == 4 and not t.name:find "downsample" then width = t.shape[1] end
        else
          for _, size in ipairs(t.shape) do
            counts[size] = (counts[size] or 0) + 1
            if counts[size] > best then best, width = counts[size], size end
          end
        end
      end
      if width and list[#list] ~= width then list[#list + 1] = width end
    end
  end
  return list
end

return discover
