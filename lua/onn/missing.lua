-- What stands in the way of running a model, in one line of bounded length: what is said of many layers is said once.
local MOST = 1500 -- bytes

-- lines: a list of texts. Returns "a; b (and in 30 more layers); c", and at the end how many did not fit.
return function(lines)
  local groups, order = {}, {}
  for _, line in ipairs(lines) do
    local key = line:gsub("'[^']*'", function(name) return (name:gsub("%.%d+%.", ".#.")) end)
    local group = groups[key]
    if not group then
      group = { text = line, count = 0 }
      groups[key], order[#order + 1] = group, group
    end
    group.count = group.count + 1
  end
  local parts, bytes, left = {}, 0, 0
  for _, group in ipairs(order) do
    local text = group.text:sub(1, 400):gsub("%c", "?")
    if group.count > 1 then text = ("%s (and %d more like it)"):format(text, group.count - 1) end
    if left > 0 or bytes + #text > MOST and #parts > 0 then
      left = left + group.count
    else
      parts[#parts + 1], bytes = text, bytes + #text + 2
    end
  end
  if left > 0 then parts[#parts + 1] = ("and %d more (onn inspect --json lists all)"):format(left) end
  return table.concat(parts, "; ")
end
