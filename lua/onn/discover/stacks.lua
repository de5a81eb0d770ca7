-- Where a model repeats itself, by the numbers in its tensors' names: which of them count stages, and which tensors have none.
-- Every step is linear in the number of tensors.
local stacks = {}

local MOST_NUMBERS = 8 -- of a name that are looked at

-- The numbers of a text: {prefix, number, suffix, strong}; strong ones are a component of their own, as in "layers.3.mlp".
local function numbers(text)
  local list, from = {}, 1
  while #list < MOST_NUMBERS do
    local first, last = text:find("%d+", from)
    if not first then break end
    if last - first < 6 then
      local before, after = text:sub(first - 1, first - 1), text:sub(last + 1, last + 1)
      if first == 1 then before = "" end
      list[#list + 1] = { prefix = text:sub(1, first - 1), number = tonumber(text:sub(first, last)), suffix = text:sub(last + 1),
        strong = (before == "" or before:find "[%./:]") and (after == "" or after:find "[%./:]") and true or false }
    end
    from = last + 1
  end
  return list
end

local function first_strong(list)
  for _, one in ipairs(list) do if one.strong then return one end end
end

local function parent_of(name) return name:match "^(.*)[%./:][^%./:]*$" or "" end

-- Where a recurrent layer's number stands: in the last word, once for each of its tensors ("rnn.weight_hh_l1_reverse").
local function last_word(name)
  local parent = parent_of(name)
  local word = name:sub(#parent + (parent == "" and 1 or 2))
  local text, number, way = word:match "^(.-)(%d+)(_?%a*)$"
  if not number or #number > 6 or text:find "%d" then return nil end
  return { prefix = (parent == "" and "" or parent .. ".") .. "layer.", number = tonumber(number), suffix = text .. way, leaf = true }
end

local function put(group, mark, tensor)
  local members = group.members[mark.number]
  if not members then
    members = {}
    group.members[mark.number], group.numbers[#group.numbers + 1] = members, mark.number
  end
  members[#members + 1] = { tensor = tensor, suffix = mark.suffix }
end

local function new_group(prefix) return { prefix = prefix, members = {}, numbers = {} } end

local function kinds_of(members)
  local set, count = {}, 0
  for _, m in ipairs(members) do
    local key = m.suffix .. "/" .. #m.tensor.shape
    if not set[key] then set[key], count = true, count + 1 end
  end
  return set, count
end

-- How alike neighbours of a group are at least: the share of suffixes (with ranks) that both have.
local function likeness(group)
  local least, before, before_count = 1, nil, nil
  for _, number in ipairs(group.numbers) do
    local set, count = kinds_of(group.members[number])
    if before then
      local common = 0
      for key in pairs(set) do if before[key] then common = common + 1 end end
      least = math.min(least, common / (count + before_count - common))
    end
    before, before_count = set, count
  end
  return least
end

-- The nested stack that nearly all members are in, or nil; its rest goes with its last stage.
local function nested(members, strong)
  local groups, order = {}, {}
  for _, m in ipairs(members) do
    local list = numbers(m.suffix)
    local mark = strong and first_strong(list) or not strong and list[1] or nil
    if mark then
      local group = groups[mark.prefix]
      if not group then
        group = new_group(mark.prefix)
        group.count, groups[mark.prefix], order[#order + 1] = 0, group, group
      end
      put(group, mark, m.tensor)
      group.count = group.count + 1
    end
  end
  local best
  for _, group in ipairs(order) do if not best or group.count > best.count then best = group end end
  if not best then return nil end
  table.sort(best.numbers)
  best.whole = best.count == #members
  best.each = best.count / #best.numbers
  best.alike = likeness(best) >= 0.6
  best.rest = {}
  if not best.whole then
    for _, m in ipairs(members) do
      local mark = strong and first_strong(numbers(m.suffix)) or not strong and numbers(m.suffix)[1] or nil
      if not mark or mark.prefix ~= best.prefix then best.rest[#best.rest + 1] = m end
    end
  end
  return best
end

local function tensors_of(members, rest)
  local list = {}
  for _, m in ipairs(members) do list[#list + 1] = m.tensor end
  for _, m in ipairs(rest or {}) do list[#list + 1] = m.tensor end
  return list
end

local function bare(prefix) return (prefix:gsub("[%./:_%-]+$", "")) end

-- Appends the stages of a group to `stages`; a stage that is itself a row of alike blocks ("layers.2.blocks.0") is taken apart.
local function unfold(group, stages, path, depth)
  local inner, wanted = {}, {}
  for _, number in ipairs(group.numbers) do
    local one = depth < 3 and not group.leaf and nested(group.members[number], group.strong) or nil
    inner[number] = one
    if one and one.alike and #one.numbers > 1 and one.each >= 2 and (one.whole or one.count >= 0.7 * #group.members[number] and one.each >= 8)
    then
      wanted[one.prefix] = true
    end
  end
  for _, number in ipairs(group.numbers) do
    local one = inner[number]
    local name = path .. group.prefix .. number
    if one and wanted[one.prefix] and one.each >= 2 and one.alike and (one.whole or one.each >= 8) then
      one.strong = group.strong
      local rest, first = one.rest, #stages + 1
      unfold(one, stages, name, depth + 1)
      local last = stages[#stages]
      if #stages >= first then for _, m in ipairs(rest) do last.tensors[#last.tensors + 1] = m.tensor end end
      for i = first, #stages do stages[i].stack = bare(name .. one.prefix) end
    else
      stages[#stages + 1] = { name = name, stack = bare(path .. group.prefix), tensors = tensors_of(group.members[number]) }
    end
  end
end

local function natural_key(text) return (text:gsub("%d+", function(n) return ("%09d"):format(tonumber(n:sub(1, 9))) end)) end

-- Groups of tensors by the numbers that count them: the strong ones, and of the others those that repeat.
local function gather(list)
  local strong, weak, later, order = {}, {}, {}, {}
  for _, t in ipairs(list) do
    local marks = numbers(t.path)
    local mark = first_strong(marks)
    if mark then
      local group = strong[mark.prefix]
      if not group then
        group = new_group(mark.prefix)
        group.strong, strong[mark.prefix], order[#order + 1] = true, group, group
      end
      put(group, mark, t)
    else
      later[#later + 1] = { tensor = t, marks = marks }
      local last = last_word(t.path)
      if last then table.insert(marks, 1, last) end
      for _, one in ipairs(marks) do
        local key = one.prefix .. (one.leaf and "\0" or "")
        one.key = key
        weak[key] = weak[key] or { numbers = {}, count = 0 }
        if not weak[key].numbers[one.number] then weak[key].numbers[one.number], weak[key].count = true, weak[key].count + 1 end
      end
    end
  end
  return order, weak, later
end

-- Numbers within words count stages where there are several, alike in what they hold.
local function gather_weak(weak, later, have_strong)
  local groups, order, loose = {}, {}, {}
  for _, one in ipairs(later) do
    local chosen
    for _, mark in ipairs(one.marks) do
      if not chosen and weak[mark.key].count > 1 then chosen = mark end
    end
    if chosen then
      local group = groups[chosen.key]
      if not group then
        group = new_group(chosen.prefix)
        group.leaf, groups[chosen.key], order[#order + 1] = chosen.leaf, group, group
      end
      put(group, chosen, one.tensor)
    else
      loose[#loose + 1] = one.tensor
    end
  end
  local kept = {}
  for _, group in ipairs(order) do
    table.sort(group.numbers)
    local total = 0
    for _, number in ipairs(group.numbers) do total = total + #group.members[number] end
    local row = #group.numbers
    row = row >= 4 and group.numbers[row] - group.numbers[1] == row - 1
    if (row or likeness(group) >= 0.4) and (not have_strong or total >= 4 * #group.numbers) then
      kept[#kept + 1] = group
    else
      for _, number in ipairs(group.numbers) do for _, m in ipairs(group.members[number]) do loose[#loose + 1] = m.tensor end end
    end
  end
  return kept, loose
end

-- Numbers that count: two or more, or one that begins at 0 or 1.
local function counts(group)
  return #group.numbers > 1 or group.numbers[1] <= 1
end

-- list: {name, shape, ...}. Returns stages {name, stack, tensors} in order, and the tensors that belong to none.
-- `outside(prefix)`: whether a stack of that name is no part of the body.
function stacks.find(list, outside)
  local order, weak, later = gather(list)
  local loose, groups = {}, {}
  for _, group in ipairs(order) do
    table.sort(group.numbers)
    if outside(group.prefix) or not counts(group) then
      for _, number in ipairs(group.numbers) do for _, m in ipairs(group.members[number]) do loose[#loose + 1] = m.tensor end end
    else
      groups[#groups + 1] = group
    end
  end
  local more, rest = gather_weak(weak, later, #groups > 0)
  for _, group in ipairs(more) do groups[#groups + 1] = group end
  for _, t in ipairs(rest) do loose[#loose + 1] = t end
  for _, group in ipairs(groups) do group.key = natural_key(group.prefix) end
  table.sort(groups, function(a, b) if a.key ~= b.key then return a.key < b.key end return a.prefix < b.prefix end)
  local stages = {}
  for _, group in ipairs(groups) do unfold(group, stages, "", 0) end
  return stages, loose
end

return stacks
