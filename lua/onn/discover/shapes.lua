-- What the shapes of one block tell: experts, layout, attention and feed-forward widths, norms, biases. Sets `guess` of its tensors.
local block = require "onn.discover.block"

local shapes = {}

local function module_of(name) return name:match "^(.*)%.[^.]+$" or name end

-- Numbered children that are alike to the last size, and are not the whole block: experts. Returns their number, and the rest.
local function experts_of(stage)
  local groups, order, rest = {}, {}, {}
  for _, t in ipairs(stage.tensors) do
    local relative = t.path:sub(#stage.name + 1)
    local prefix, number, suffix = relative:match "^(.-)(%d+)(%..*)$"
    if prefix and #number < 7 then
      local group = groups[prefix]
      if not group then
        group = { numbers = {}, count = 0, kinds = {}, tensors = {}, matrices = 0 }
        groups[prefix], order[#order + 1] = group, group
      end
      if not group.numbers[number] then group.numbers[number], group.count = true, group.count + 1 end
      local kind = suffix .. table.concat(t.shape, ",")
      group.kinds[kind] = (group.kinds[kind] or 0) + 1
      group.tensors[#group.tensors + 1] = t
      if #t.shape == 2 then group.matrices = group.matrices + 1 end
    else
      rest[#rest + 1] = t
    end
  end
  local count, per, inside
  for _, group in ipairs(order) do
    local alike = group.count > 1 and group.matrices >= 2 * group.count and #group.tensors < #stage.tensors
    for _, n in pairs(group.kinds) do alike = alike and n == group.count end
    if alike and not count then
      count, per, inside = group.count, #group.tensors / group.count, group.tensors
      for _, t in ipairs(group.tensors) do t.guess = "experts" end
    else
      for _, t in ipairs(group.tensors) do rest[#rest + 1] = t end
    end
  end
  return count, per, rest, inside
end

-- Is (a, b) stored as (in, out), as by Conv1D? Biases' lengths tell: a module's own, else how many of each length there are.
local function is_transposed(tensors, width)
  local modules, order, lengths = {}, {}, {}
  for _, t in ipairs(tensors) do
    local m = module_of(t.path)
    if not modules[m] then
      modules[m] = { matrices = {}, vectors = {} }
      order[#order + 1] = modules[m]
    end
    if #t.shape == 2 then table.insert(modules[m].matrices, t.shape) end
    if #t.shape == 1 and not t.buffer then
      table.insert(modules[m].vectors, t.shape[1])
      lengths[t.shape[1]] = (lengths[t.shape[1]] or 0) + 1
    end
  end
  local yes, no = 0, 0
  for _, m in ipairs(order) do
    local s, v = m.matrices[1], m.vectors[1]
    if #m.matrices == 1 and #m.vectors == 1 and s[1] ~= s[2] then
      if v == s[2] then yes = yes + 1 elseif v == s[1] then no = no + 1 end
    end
  end
  if yes + no > 0 then return yes > no, true end
  local out, into = {}, {}
  for _, t in ipairs(tensors) do
    local s = t.shape
    if #s == 2 and s[1] ~= s[2] then
      if s[2] == width then out[s[1]] = (out[s[1]] or 0) + 1 end
      if s[1] == width then into[s[2]] = (into[s[2]] or 0) + 1 end
    end
  end
  for length, n in pairs(lengths) do
    if length ~= width then
      if into[length] == n and out[length] ~= n then yes = yes + 1 end
      if out[length] == n and into[length] ~= n then no = no + 1 end
    end
  end
  return yes > no, yes + no > 0
end

-- Vectors: norms are alone in their module or with a bias of their length; what is as long as a matrix beside it is its bias.
local function vectors_of(tensors, width, found)
  local modules, order = {}, {}
  for _, t in ipairs(tensors) do
    local m = module_of(t.path)
    if not modules[m] then
      modules[m] = { matrices = 0, list = {} }
      order[#order + 1] = modules[m]
    end
    if #t.shape == 2 then modules[m].matrices = modules[m].matrices + 1 end
    if #t.shape == 1 and not t.buffer then table.insert(modules[m].list, t) end
  end
  found.norms, found.norm_biases, found.biases, found.head_norms, found.vectors = 0, 0, 0, {}, 0
  for _, m in ipairs(order) do
    local n = #m.list
    found.vectors = found.vectors + n
    if m.matrices > 0 then
      found.biases = found.biases + n
    elseif n == 1 or n == 2 and m.list[1].shape[1] == m.list[2].shape[1] then
      for _, t in ipairs(m.list) do t.guess = "norm" end
      if m.list[1].shape[1] == width then
        found.norms, found.norm_biases = found.norms + 1, found.norm_biases + n - 1
      else
        table.insert(found.head_norms, m.list[1].shape[1])
      end
    else
      found.mixed = true -- modules are not told apart by their names
    end
  end
end

local function guess_roles(tensors, width, found)
  local r = found.reading
  for _, t in ipairs(tensors) do
    local s = t.shape
    if #s == 2 and not t.guess and r then
      local a, b = s[1], s[2]
      if found.transposed then a, b = b, a end
      local other = a == width and b or b == width and a or nil
      if other then
        local feed = other == r.inner or b == width and other == r.gate_up
        local attends = other == r.query or b == width and (other == r.kv or other == r.qkv)
        if attends and not feed then t.guess = "attention" elseif feed and not attends then t.guess = "mlp" end
        if found.experts and a == found.experts and not attends and not feed then t.guess = "experts" end
      end
    elseif #s == 1 and not t.guess and found.mixed and s[1] == width then
      t.guess = "norm"
    end
  end
end

-- What the block `stage` (tensors {name, shape, buffer}) is made of, on a stream of `width`: {reading = block.read's, rivals, transposed,
-- experts, expert_inner, norms, norm_biases, biases, head_norms, tensors}.
function shapes.read(stage, width)
  local found = { tensors = #stage.tensors }
  local count, per, rest, inside = experts_of(stage)
  found.experts, found.per_expert = count, per
  for _, t in ipairs(inside or {}) do
    for d = 1, #t.shape do
      if #t.shape == 2 and t.shape[d] == width then found.expert_inner = math.max(found.expert_inner or 0, t.shape[3 - d]) end
    end
  end
  local matrices, tensors = {}, {}
  for _, t in ipairs(rest) do
    if not t.buffer then
      tensors[#tensors + 1] = t
      if #t.shape == 3 and t.shape[1] > 1 and (t.shape[2] == width or t.shape[3] == width) then
        t.guess, found.experts, found.stacked = "experts", t.shape[1], true
      end
    end
  end
  found.transposed, found.layout_told = is_transposed(tensors, width)
  for _, t in ipairs(tensors) do
    local s = t.shape
    if #s == 2 then matrices[#matrices + 1] = found.transposed and { s[2], s[1] } or { s[1], s[2] } end
  end
  found.matrices = #matrices
  found.reading, found.rivals = block.read(matrices, width)
  if not found.experts then
    found.experts, found.per_expert, found.expert_inner = block.experts(matrices, width, found.reading)
    if found.experts then found.reading.inner, found.reading.gated = nil, nil end
  end
  vectors_of(tensors, width, found)
  guess_roles(tensors, width, found)
  return found
end

return shapes
