-- Plots as plain text: lines in braille dots (2 x 4 to a character) and horizontal bars.
local nearest = require "onn.nearest"

local plot = {}

local function short(value)
  local text = ("%.4g"):format(value)
  return text
end

local function finite(value) return type(value) == "number" and value == value and math.abs(value) ~= math.huge end

local function braille(bits)
  local code = 0x2800 + bits -- three bytes of UTF-8
  return string.char(0xE0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
end

-- Bit of the dot at column 0..1, row 0..3 of one character.
local dots = { [0] = { [0] = 0x01, 0x02, 0x04, 0x40 }, { [0] = 0x08, 0x10, 0x20, 0x80 } }

local function range(points, axis, log)
  local low, high = math.huge, -math.huge
  for _, p in ipairs(points) do
    if finite(p[axis]) and not (log and p[axis] <= 0) then low, high = math.min(low, p[axis]), math.max(high, p[axis]) end
  end
  if low > high then return nil end
  if low == high then low, high = low - math.max(0.5, math.abs(low) * 0.01), high + math.max(0.5, math.abs(high) * 0.01) end
  return low, high
end

-- line(points, { width = 60, height = 12, title, log = false }) -> text
-- points: numbers y, or pairs { x, y }; what is not finite is left out. `width` and `height` count characters. `log` draws
-- y on a logarithmic scale.
function plot.line(points, options)
  options = nearest.check(options or {}, { "width", "height", "title", "log" }, "plot.line")
  local width, height = options.width or 60, options.height or 12
  local list = {}
  for i, p in ipairs(points) do
    local x, y = i, p
    if type(p) == "table" then x, y = p[1], p[2] end
    if finite(x) and finite(y) and not (options.log and y <= 0) then
      list[#list + 1] = { x, options.log and math.log(y) or y }
    end
  end
  local x0, x1 = range(list, 1)
  local y0, y1 = range(list, 2)
  if not x0 then return (options.title and options.title .. "\n" or "") .. "(nothing to plot)" end
  table.sort(list, function(a, b) return a[1] < b[1] end)

  local grid = {}
  local function set(column, row) -- in dots, row 0 on top
    local cell = math.floor(row / 4) * width + math.floor(column / 2)
    local bit_value = dots[column % 2][row % 4]
    grid[cell] = grid[cell] or {}
    grid[cell][bit_value] = true
  end
  local function place(p)
    return math.floor((p[1] - x0) / (x1 - x0) * (width * 2 - 1) + 0.5),
      math.floor((y1 - p[2]) / (y1 - y0) * (height * 4 - 1) + 0.5)
  end
  local px, py
  for _, p in ipairs(list) do
    local cx, cy = place(p)
    local steps = px and math.max(math.abs(cx - px), math.abs(cy - py)) or 0
    for s = 1, steps do
      set(math.floor(px + (cx - px) * s / steps + 0.5), math.floor(py + (cy - py) * s / steps + 0.5))
    end
    if steps == 0 then set(cx, cy) end
    px, py = cx, cy
  end

  local function label(value) return short(options.log and math.exp(value) or value) end
  local top, bottom = label(y1), label(y0)
  local margin = math.max(#top, #bottom)
  local lines = { options.title }
  for row = 0, height - 1 do
    local parts = {}
    for column = 0, width - 1 do
      local bits = 0
      for value in pairs(grid[row * width + column] or {}) do bits = bits + value end
      parts[#parts + 1] = bits == 0 and " " or braille(bits)
    end
    local name = row == 0 and top or row == height - 1 and bottom or ""
    lines[#lines + 1] = ((" "):rep(margin - #name) .. name .. " │" .. table.concat(parts)):gsub("%s+$", "")
  end
  local left, right = short(x0), short(x1)
  lines[#lines + 1] = (" "):rep(margin) .. " └" .. ("─"):rep(width)
  lines[#lines + 1] = (" "):rep(margin + 2) .. left .. (" "):rep(math.max(1, width - #left - #right)) .. right
  return table.concat(lines, "\n")
end

local eighths = { "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

-- bars({ { label, value }, ... }, { width = 40, title, format = "%.3g" or function }) -> text; negative values draw no bar.
function plot.bars(rows, options)
  options = nearest.check(options or {}, { "width", "title", "format" }, "plot.bars")
  local width, format = options.width or 40, options.format or "%.3g"
  local most, longest, lines = 0, 0, { options.title }
  local function letters(text) return select(2, text:gsub("[^\128-\191]", "")) end
  for _, row in ipairs(rows) do
    if finite(row[2]) then most = math.max(most, row[2]) end
    longest = math.max(longest, letters(tostring(row[1])))
  end
  for _, row in ipairs(rows) do
    local name, value = tostring(row[1]), row[2]
    local units = finite(value) and most > 0 and math.max(0, math.floor(value / most * width * 8 + 0.5)) or 0
    local drawn = ("█"):rep(math.floor(units / 8)) .. (eighths[units % 8] or "")
    local text = type(format) == "function" and format(value) or format:format(value)
    lines[#lines + 1] = ("%s%s %s %s"):format(name, (" "):rep(longest - letters(name)), drawn, text)
  end
  return table.concat(lines, "\n")
end

return plot
