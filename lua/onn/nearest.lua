-- The known name most like a mistyped one, and the check of option tables that uses it.
local nearest = {}

-- Edits (insert, delete, change, swap of neighbours) that turn a into b.
local function distance(a, b)
  local before, row = {}, {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local last = before
    before, row = row, { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      local best = math.min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        best = math.min(best, last[j - 2] + 1)
      end
      row[j] = best
    end
  end
  return row[#b]
end

-- find(word, names) -> the nearest of the list `names`, or nil if none is close
function nearest.find(word, names)
  local best, least = nil, math.max(1, math.floor(#word / 3)) + 1
  if #word > 64 then return nil end
  for _, name in ipairs(names) do
    local d = distance(word:lower(), name:lower())
    if d < least or (d == least and best and name < best) then best, least = name, d end
  end
  if not best and #word >= 3 then -- a beginning that only one name has: --max for --max-tokens
    for _, name in ipairs(names) do
      if name:sub(1, #word) == word then
        if best then return nil end
        best = name
      end
    end
  end
  return best
end

-- hint(word, names) -> "; did you mean 'x'?" or ""
function nearest.hint(word, names)
  local name = nearest.find(word, names)
  return name and ("; did you mean '%s'?"):format(name) or ""
end

-- check(options, known, what): raises on a key of `options` that the list `known` lacks.
function nearest.check(options, known, what)
  local set = {}
  for _, name in ipairs(known) do set[name] = true end
  for key in pairs(options) do
    if not set[key] then
      error(("%s: unknown option '%s'%s"):format(what, tostring(key), nearest.hint(tostring(key), known)), 3)
    end
  end
  return options
end

return nearest
