-- What shapes say of a model without a config, each with a confidence, and what they cannot say. Nothing here runs a model.
local discover = require "onn.discover"
local recurrent = require "onn.discover.recurrent"
local shapes = require "onn.discover.shapes"

local findings = {}

local function shape_key(stage)
  local list = {}
  for i, t in ipairs(stage.tensors) do list[i] = table.concat(t.shape, "x") end
  table.sort(list)
  return table.concat(list, " ")
end

-- Stages of one kind by what they hold; blocks are read once for each set of shapes.
local function survey(stages, width)
  local s = { blocks = 0, convolutions = 0, recurrent = 0, kinds = {}, order = {} }
  for _, stage in ipairs(stages) do
    if stage.kind == "block" then
      s.blocks = s.blocks + 1
      local key = shape_key(stage)
      local kind = s.kinds[key]
      if not kind then
        kind = { count = 0, stage = stage }
        s.kinds[key], s.order[#s.order + 1] = kind, kind
      end
      kind.count = kind.count + 1
      if width then kind.found = shapes.read(stage, width) end
    elseif stage.kind == "convolution" then
      s.convolutions = s.convolutions + 1
    elseif stage.kind == "recurrent" then
      s.recurrent = s.recurrent + 1
      s.cell = s.cell or {}
      table.insert(s.cell, stage)
    end
  end
  for _, kind in ipairs(s.order) do if not s.main or kind.count > s.main.count then s.main = kind end end
  return s
end

local function tables_of(stages)
  local stem, head = {}, {}
  for _, stage in ipairs(stages) do
    if not stage.index then
      for _, t in ipairs(stage.tensors) do
        if #t.shape == 2 and not t.buffer then table.insert(stage.kind == "stem" and stem or head, t) end
      end
    end
  end
  local function by_rows(a, b) if a.shape[1] ~= b.shape[1] then return a.shape[1] > b.shape[1] end return a.name < b.name end
  table.sort(stem, by_rows)
  table.sort(head, by_rows)
  return stem, head
end

local function outer(add, facts, stages, width)
  local stem, head = tables_of(stages)
  local embed = stem[1]
  if not embed then return end
  facts.vocabulary = embed.shape[1]
  add("vocabulary", facts.vocabulary, 0.9, ("'%s' has the most rows"):format(embed.name))
  if embed.shape[2] ~= width then
    facts.embedding_width = embed.shape[2]
    add("embedding width", embed.shape[2], 0.9, ("differs from the stream's %s"):format(width or "width"))
  end
  local out
  for _, t in ipairs(head) do if t.shape[1] == embed.shape[1] then out = out or t end end
  facts.head = out and out.name or nil
  if out then
    add("head", out.name, 0.9, "as many rows as the embedding")
  else
    facts.tied = true
    add("tied", "embedding and head", #head == 0 and 0.9 or 0.6, "no other matrix has as many rows as the embedding")
  end
  for i = 2, #stem do
    local t = stem[i]
    if t.shape[1] == 1 or t.shape[1] == 2 then
      add("token types", t.shape[1], 0.7, ("'%s'"):format(t.name))
    elseif t.shape[2] == embed.shape[2] and not facts.positions then
      facts.positions = t.shape[1]
      add("learned positions", t.shape[1], 0.7, ("'%s' is a second table of that width"):format(t.name))
    end
  end
end

local function attention(add, facts, found)
  local r = found.reading
  local sure = (r.used == r.of and 0.9 or 0.6) - math.min(0.4, 0.1 * found.rivals)
  facts.query, facts.kv, facts.inner, facts.gated = r.query, r.kv, r.inner, r.gated
  if r.query then
    local way = r.qkv and ("one matrix of %d rows for query, key and value"):format(r.qkv) or "query, key, value apart"
    add("attention", ("query %d, key and value %d"):format(r.query, r.kv), sure, way)
    if r.qkv then facts.fused_qkv = r.qkv end
  end
  if r.inner then
    local way = r.gate_up and ("gated, gate and up in one matrix of %d rows"):format(r.gate_up) or r.gated and "gated" or "up and down, not gated"
    add("feed-forward", r.inner, sure, way)
  end
end

local function block_findings(add, facts, s)
  local found = s.main.found
  if not found then return end
  if found.experts then
    facts.experts = found.experts
    add("experts", found.experts, 0.9, found.stacked and "matrices stacked in three dimensions" or ("%g tensors each, all alike"):format(
      found.per_expert))
    if found.expert_inner then
      facts.expert_inner = found.expert_inner
      add("experts' inner width", found.expert_inner, 0.8, "beside the stream's width")
    end
  end
  if found.reading then attention(add, facts, found) end
  facts.transposed = found.transposed
  if found.transposed then
    add("layout", "(in, out), as Conv1D stores", 0.8, "biases are as long as the matrices' second dimension")
  elseif found.layout_told then
    add("layout", "(out, in), as Linear stores", 0.9, "biases are as long as the matrices' first dimension")
  end
  if found.mixed then
    add("vectors", found.vectors, 0.5, "norms and biases of a block; names do not tell them apart")
  else
    local name = found.norms == 0 and "none at the stream's width" or ("%d of a block, %s"):format(found.norms,
      found.norm_biases == 0 and "without biases" or found.norm_biases == found.norms and "with biases" or "some with biases")
    facts.norms, facts.norm_biases, facts.biases = found.norms, found.norm_biases, found.biases
    add("norms", name, 0.8, "vectors without a matrix in their module")
    add("biases", found.biases > 0 and ("%d of a block's %d matrices"):format(found.biases, found.matrices) or "none",
      0.9, "vectors beside a matrix")
    local sizes, list = {}, {}
    for _, n in ipairs(found.head_norms) do
      if not sizes[n] then sizes[n], list[#list + 1] = true, n end
    end
    if #list == 1 and #found.head_norms >= 1 and facts.query and facts.query % list[1] == 0 and list[1] < facts.query then
      facts.head_size = list[1]
      add("head size", list[1], 0.7, "vectors of that length, as norms of each head's query and key have")
    end
  end
  if s.blocks > s.main.count then
    add("unlike blocks", s.blocks - s.main.count, 0.9, ("%d of %d are like '%s'"):format(s.main.count, s.blocks, s.main.stage.name))
  end
end

local cannot = {
  transformer = { "the number of heads", "how positions are told (rotary base, share and scaling, or none)", "the norms' epsilon and place",
    "the activation", "whether attention is causal", "windows, soft caps and multipliers" },
  recurrent = { "whether the cell is the usual one of its number of gates", "whether directions and layers follow each other as usual" },
  cnn = { "strides, padding, dilation and groups", "activations and pooling", "how branches join", "the norms' epsilon" },
  mlp = { "the order of the layers", "the activations" },
}

-- stages, stacks: discover.stages'. Returns the list {what, value, confidence (0 to 1), why}, the facts behind it {type, width, inner,
-- vocabulary, layers, query, kv, ...}, and the list of what is missing to run the model. Sets the tensors' `guess`.
function findings.of(stages, stacks)
  local width = discover.width(stages)
  local list, facts = {}, { width = width, layers = 0 }
  local function add(what, value, confidence, why)
    list[#list + 1] = { what = what, value = value, confidence = math.floor(confidence * 100 + 0.5) / 100, why = why }
  end
  for i, stack in ipairs(stacks) do
    facts.layers = facts.layers + stack.count
    if i <= 20 then
      local one = stack.count == 1
      add("stack", ("%s: %d stage%s"):format(stack.name == "" and "(no prefix)" or stack.name, stack.count, one and "" or "s"),
        one and 0.5 or 0.95, one and "stands alone" or "a number in the names counts them")
    end
  end
  if #stacks > 20 then add("stack", ("%d more"):format(#stacks - 20), 0.9, "as above") end
  local s = survey(stages, width)
  if width and s.blocks > 0 then
    add("width", width, 0.9, "the size that most matrices of the blocks share")
    block_findings(add, facts, s)
  end
  if s.recurrent > 0 then
    local read = recurrent.read(s.cell[#s.cell].tensors)
    if read then
      facts.hidden, facts.cell = read.hidden, read.cell
      add("recurrent", ("%s, %d layers, state %d"):format(read.cell, s.recurrent, read.hidden), 0.8,
        ("%d rows are %d gates of %d"):format(read.rows, read.rows / read.hidden, read.hidden))
    end
  end
  if s.convolutions > 0 then add("convolutions", ("%d stages"):format(s.convolutions), 0.9, "weights of (out, in / groups, kernel)") end
  outer(add, facts, stages, width)
  local guessed = 0
  for _, stage in ipairs(stages) do for _, t in ipairs(stage.tensors) do if t.guessed then guessed = guessed + 1 end end end
  if guessed > 0 then
    add("state", ("%d vectors"):format(guessed), 0.7, "running statistics; which two of a norm's four vectors they are, names do not tell")
  end
  facts.type = discover.type(stages)
  local missing = {}
  local function lacks(which) for _, text in ipairs(cannot[which]) do missing[#missing + 1] = text end end
  if facts.type == "transformer" or facts.query then lacks "transformer" end
  if s.recurrent > 0 then lacks "recurrent" end
  if s.convolutions > 0 then lacks "cnn" end
  if #missing == 0 then lacks "mlp" end
  return list, facts, missing
end

return findings
