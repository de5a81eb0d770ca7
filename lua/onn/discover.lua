-- Stages of a model by its tensors' names and shapes alone, for any architecture: what repeats under a number is the stack, what
-- comes before and after it are the stem and the head. Enough to analyse a model, not to run it.
local recurrent = require "onn.discover.recurrent"
local stacks = require "onn.discover.stacks"
local state = require "onn.discover.state"

local discover = {}

-- Tensors that are state or constants, not parameters: running statistics, rotary tables, causal masks.
discover.is_buffer = state.named

local stem_words = { "emb", "wte", "wpe", "^stem", "^conv1$", "^bn1$", "patch", "^conv_stem", "relative_position" }
local head_words = { "head", "classif", "^fc", "%.fc$", "cls%.", "score", "logits", "^out", "embed_out", "unembed" }

local function module_of(name) return name:match "^(.*)%.[^.]+$" or name end
local function parent_of(name) return name:match "^(.*)%.[^.]+$" or "" end

local function has_word(text, words)
  for _, word in ipairs(words) do if text:find(word) then return true end end
  return false
end

local function is_head(module) return has_word(module, head_words) end
local function is_stem(module) return has_word(module, stem_words) and not module:find "embed_out" and not module:find "unembed" end

-- Numbered modules after the body, such as a classifier's layers, belong to the head.
local function outside(prefix)
  return prefix:find "classifier" or prefix:find "^head" or prefix:find "fc" or prefix:find "cls%." or is_stem(prefix)
end

local function stage_kind(tensors)
  local matrices, deep = 0, false
  for _, t in ipairs(tensors) do
    if t.name:find "weight_hh" then return "recurrent" end
    if #t.shape == 4 or #t.shape == 3 and t.shape[3] <= 64 and t.shape[1] > t.shape[3] then deep = true end
    if #t.shape == 2 and not t.buffer then matrices = matrices + 1 end
  end
  if deep and matrices < 4 then return "convolution" end
  if recurrent.read(tensors) then return "recurrent" end
  return "block"
end

-- The width that most of the blocks' matrices have in common; what the embedding has is preferred.
local function stream_width(stages, loose)
  local counts, tables, vectors = {}, {}, {}
  local seen = 0
  for _, stage in ipairs(stages) do
    if stage.kind == "block" and seen < 64 then
      seen = seen + 1
      for _, t in ipairs(stage.tensors) do
        local s = t.shape
        if #s == 2 and not t.buffer then
          counts[s[1]] = (counts[s[1]] or 0) + 1
          if s[2] ~= s[1] then counts[s[2]] = (counts[s[2]] or 0) + 1 end
        elseif #s == 1 and not t.buffer then
          vectors[s[1]] = (vectors[s[1]] or 0) + 1
        end
      end
    end
  end
  for _, t in ipairs(loose) do
    local s = t.shape
    if #s == 2 and s[1] > s[2] and (not tables.rows or s[1] > tables.rows) then tables.rows, tables.width = s[1], s[2] end
  end
  local width, best = nil, 0
  for size, n in pairs(counts) do
    local score = n + math.min(vectors[size] or 0, n) * 0.5
    if size == tables.width and n >= 2 then score = score * 4 end
    if score > best or score == best and size < width then best, width = score, size end
  end
  return width
end

-- Recurrent layers among the tensors without a number become stages of their own, one a module.
local function recurrent_modules(loose, stages)
  local modules, order, rest = {}, {}, {}
  for _, t in ipairs(loose) do
    local name = module_of(t.path)
    if not modules[name] then modules[name], order[#order + 1] = {}, name end
    table.insert(modules[name], t)
  end
  for _, name in ipairs(order) do
    local list = modules[name]
    local read = #list <= 64 and recurrent.read(list)
    if read and read.layers == 1 then
      stages[#stages + 1] = { name = name, stack = name, kind = "recurrent", tensors = list }
    elseif read then
      -- no number tells the layers apart: matrices and vectors in the names' order, the first layer with the input's matrix
      for layer = 1, read.layers do
        stages[#stages + 1] = { name = ("%s.%d"):format(name, layer - 1), stack = name, kind = "recurrent", tensors = {} }
      end
      local first = #stages - read.layers
      local hidden, inputs, vectors = {}, {}, {}
      for _, t in ipairs(list) do
        if #t.shape == 1 then vectors[#vectors + 1] = t
        elseif t.shape[2] == read.hidden and #hidden < read.layers then hidden[#hidden + 1] = t
        else table.insert(inputs, t.shape[2] == read.hidden and #inputs + 1 or 1, t) end
      end
      local function deal(all)
        local each = math.ceil(#all / read.layers)
        for i, t in ipairs(all) do table.insert(stages[first + math.ceil(i / each)].tensors, t) end
      end
      deal(inputs) deal(hidden) deal(vectors)
    else
      for _, t in ipairs(list) do rest[#rest + 1] = t end
    end
  end
  return rest
end

-- What flows into the first stage of the body and out of its last: the embedding's and the head's widths.
local function ends(stages, width)
  local first, last = stages[1], stages[#stages]
  local into, out = width, width
  if first and first.kind == "recurrent" then into = (recurrent.read(first.tensors) or {}).input end
  if last and last.kind == "recurrent" then out = (recurrent.read(last.tensors) or {}).hidden end
  return into, out
end

-- The channels that go into a convolutional stage and come out of it.
local function channels_of(stage)
  local made, into, out = {}, nil, nil
  for _, t in ipairs(stage.tensors) do
    if #t.shape >= 3 then made[t.shape[1]], out = true, math.max(out or 0, t.shape[1]) end
  end
  for _, t in ipairs(stage.tensors) do
    if #t.shape >= 3 and t.shape[2] > 1 and (not made[t.shape[2]] or not into) then into = t.shape[2] end
  end
  return into, out
end

-- Stacks of convolutions in the order in which channels lead from one to the next; names decide where several would fit.
local function chained(stages, loose)
  local lists, current = {}, nil
  for _, stage in ipairs(stages) do
    local last = lists[#lists]
    if last and last[1].stack == stage.stack then last[#last + 1] = stage else lists[#lists + 1] = { stage } end
  end
  if #lists < 2 or #lists > 64 then return stages end
  for _, t in ipairs(loose) do if #t.shape >= 3 and t.shape[2] <= 4 then current = t.shape[1] end end
  local all = {}
  while #lists > 0 do
    local at, narrowest = 1, math.huge
    for i, list in ipairs(lists) do -- of those that fit, what keeps the channels comes before what widens them
      local into, out = channels_of(list[1])
      if into == current and out < narrowest then at, narrowest = i, out end
    end
    local list = table.remove(lists, at)
    for _, stage in ipairs(list) do all[#all + 1] = stage end
    current = select(2, channels_of(list[#list])) or current
  end
  return all
end

-- Tensors without a stage: those of the stem, and those of the head. Words decide; where they say nothing, shapes do.
local function split(loose, stages, width)
  local stem, head, tables, unsure = {}, {}, {}, {}
  local modules, parents, channels = {}, {}, {}
  local into, out = ends(stages, width)
  local function to_stem(t)
    stem[#stem + 1] = t
    modules[module_of(t.path)] = true
    if #t.shape >= 2 then
      parents[parent_of(module_of(t.path))] = (parents[parent_of(module_of(t.path))] or 0) + 1
      channels[t.shape[#t.shape == 2 and 2 or 1]] = true
    end
  end
  local named_table = false
  for _, t in ipairs(loose) do
    local module = module_of(t.path)
    if is_stem(module) then
      to_stem(t)
      if #t.shape == 2 then named_table = true end
    elseif is_head(module) then
      head[#head + 1] = t
    elseif #t.shape >= 3 and t.shape[2] <= 4 then
      to_stem(t)
    elseif #t.shape == 2 and t.shape[2] == into and t.shape[1] > 1 and t.shape[1] ~= into then
      tables[#tables + 1] = t
    else
      unsure[#unsure + 1] = t
    end
  end
  table.sort(tables, function(a, b) if a.shape[1] ~= b.shape[1] then return a.shape[1] > b.shape[1] end return a.name < b.name end)
  local claimed = #head > 0 and into ~= out
  for _, t in ipairs(tables) do
    local bare = t.shape[1] <= into and #tables == 1 and not stages[1]
    if named_table or bare or claimed and #tables == 0 then
      head[#head + 1] = t
    elseif t ~= tables[1] and t.shape[1] == tables[1].shape[1] and not t.head_seen then
      head[#head + 1] = t -- as many rows as the embedding: the head
    elseif t == tables[1] and t.shape[1] <= into then
      head[#head + 1] = t
    else
      to_stem(t)
    end
  end
  local body_first, above = stages[1] and stages[1].kind, {}
  for _, stage in ipairs(stages) do
    if stage ~= stages[1] and stage.stack == stages[1].stack then break end
    local up = parent_of(stage.stack)
    while up ~= "" do above[up], up = true, parent_of(up) end
  end
  for _, t in ipairs(unsure) do
    local module = module_of(t.path)
    local parent = parent_of(module)
    local near = modules[module] or (parents[parent] or 0) >= 2 and parent ~= "" and not above[parent]
    local follows = body_first == "convolution" and #t.shape <= 1 and (#t.shape == 0 or channels[t.shape[1]])
    if near or follows then stem[#stem + 1] = t else head[#head + 1] = t end
  end
  return stem, head
end

-- What parts names where no dot does: "/", ":" or "_"; nil where dots do.
local function separator_of(names)
  for _, separator in ipairs { "%.", "/", ":", "_" } do
    for i = 1, math.min(#names, 1000) do
      if names[i]:find(separator) then return separator ~= "%." and separator or nil end
    end
  end
end

-- names: all tensors' names; info(name) -> {shape, dtype, bytes}. Returns stages {name, kind, index, stack, tensors = {{name, path
-- (the name parted by dots), shape, dtype, bytes, buffer}}}: at most one stem, the numbered ones (index 0, 1, ...), at most one head;
-- and the stacks {name, count}.
function discover.stages(names, info)
  local list, separator = {}, separator_of(names)
  for i, name in ipairs(names) do
    local one = info(name)
    list[i] = { name = name, path = separator and name:gsub(separator, ".") or name, shape = one.shape, dtype = one.dtype, bytes = one.bytes }
  end
  state.mark(list)
  local stages, loose = stacks.find(list, outside)
  local convolutions = false
  for _, stage in ipairs(stages) do
    stage.kind = stage_kind(stage.tensors)
    convolutions = convolutions or stage.kind == "convolution"
  end
  if convolutions then -- layers without convolutions that follow such a stack on their own are a classifier's
    local body = {}
    for _, stage in ipairs(stages) do
      if stage.kind == "block" and #stage.tensors <= 2 then
        for _, t in ipairs(stage.tensors) do loose[#loose + 1] = t end
      else
        body[#body + 1] = stage
      end
    end
    stages = chained(body, loose)
  end
  loose = recurrent_modules(loose, stages)
  local width = stream_width(stages, loose)
  local stem, head = split(loose, stages, width)
  local order, all = {}, {}
  if #stem > 0 then all[1] = { name = module_of(stem[1].name), kind = "stem", tensors = stem } end
  for index, stage in ipairs(stages) do
    stage.index = index - 1
    all[#all + 1] = stage
    local last = order[#order]
    if last and last.name == stage.stack then last.count = last.count + 1 else order[#order + 1] = { name = stage.stack, count = 1 } end
  end
  if #head > 0 then all[#all + 1] = { name = module_of(head[#head].name), kind = "head", tensors = head } end
  return all, order
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
  if #t.shape >= 3 then return "convolution" end
  if kind == "head" then return "head" end
  if kind == "stem" or kind == "embedding" then return "embedding" end
  if kind == "recurrent" then return "recurrent" end
  if kind == "convolution" and #t.shape == 1 then return "norm" end
  return t.guess or "other"
end

-- What kind of network the stages are: transformer, cnn, rnn, hybrid, mlp, or unknown.
function discover.type(stages)
  local has = {}
  for _, stage in ipairs(stages) do
    if stage.kind == "recurrent" then has.recurrent = true end
    for _, t in ipairs(stage.tensors) do
      local role = discover.role(t, stage.kind)
      has[role] = true
      if role == "convolution" and stage.kind == "convolution" then has.convolutions = true end
      if #t.shape == 2 then has.matrix = true end
    end
  end
  if (has.attention or has.recurrent) and has.convolutions then return "hybrid" end
  if has.attention then return "transformer" end
  if has.convolution then return "cnn" end
  if has.recurrent then return "rnn" end
  return has.matrix and "mlp" or "unknown"
end

-- The width of the stream that blocks read from and add to, or nil where there are none.
function discover.width(stages)
  local loose = {}
  for _, stage in ipairs(stages) do
    if not stage.index then for _, t in ipairs(stage.tensors) do loose[#loose + 1] = t end end
  end
  return stream_width(stages, loose)
end

-- Distinct widths of what flows between stages, in order: of norms and matrices' outputs, convolutions' channels, recurrent states.
function discover.widths(stages)
  local list, width, stream = {}, nil, discover.width(stages)
  for _, stage in ipairs(stages) do
    if stage.index then
      if stage.kind == "recurrent" then
        width = (recurrent.read(stage.tensors) or {}).hidden
      elseif stage.kind == "convolution" then
        for _, t in ipairs(stage.tensors) do
          if #t.shape >= 3 and not t.name:find "downsample" then width = t.shape[1] end
        end
      else
        width = stream
      end
      if width and list[#list] ~= width then list[#list + 1] = width end
    end
  end
  return list
end

return discover
