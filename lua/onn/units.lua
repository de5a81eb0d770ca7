-- Sizes, times and counts as people write and read them. KB, MB, GB, TB are 1000s; KiB, MiB, GiB, TiB are 1024s.
local units = {}

local size_units = { [""] = 1, B = 1 }
for power, letter in ipairs { "K", "M", "G", "T" } do
  size_units[letter] = 1000 ^ power
  size_units[letter .. "B"] = 1000 ^ power
  size_units[letter .. "IB"] = 1024 ^ power
end
local time_units = { ms = 1e-3, s = 1, m = 60, min = 60, h = 3600, d = 86400 }

local function number_of(text)
  return text:find "^%d+%.?%d*$" and tonumber(text) or text:find "^%.%d+$" and tonumber(text) or nil
end

-- parse_bytes("4GB") -> 4e9; nil, message
function units.parse_bytes(text)
  local digits, unit = tostring(text):match "^%s*([%d%.]+)%s*(%a*)%s*$"
  local value = digits and number_of(digits)
  local scale = unit and size_units[unit:upper()]
  if not value or not scale then
    return nil, ("expected a size such as 512MB, 4GB or 8GiB, got '%s'"):format(text)
  end
  local bytes = math.floor(value * scale)
  if bytes >= 2 ^ 53 then return nil, ("'%s' is more bytes than can be counted"):format(text) end
  return bytes
end

-- parse_duration("1h30m") -> 5400 seconds; "90" is seconds; nil, message
function units.parse_duration(text)
  local rest, total = tostring(text):gsub("%s+", ""), 0
  if number_of(rest) then return number_of(rest) end
  local count = 0
  while rest ~= "" do
    local digits, unit, after = rest:match "^([%d%.]+)(%a+)(.*)$"
    local value, scale = digits and number_of(digits), unit and time_units[unit]
    if not value or not scale then count = 0 break end
    total, rest, count = total + value * scale, after, count + 1
  end
  if count == 0 then return nil, ("expected a time such as 500ms, 60s, 5m or 1h30m, got '%s'"):format(text) end
  return total
end

-- 3 significant digits, no exponent below 1e6
local function digits(value)
  local size = math.abs(value)
  return (size >= 100 and "%.0f" or size >= 10 and "%.1f" or "%.2f"):format(value)
end

local function scaled(value, base, names)
  local step, size = 1, math.abs(value)
  while size >= base * 0.9995 and step < #names do
    size, value, step = size / base, value / base, step + 1
  end
  return value, names[step], step
end

-- bytes(4e9) -> "4.00 GB"
function units.bytes(value)
  local n, name, step = scaled(value, 1000, { "B", "KB", "MB", "GB", "TB", "PB" })
  return (step == 1 and "%d" or "%s"):format(step == 1 and n or digits(n)) .. " " .. name
end

-- need(4.001e9) -> "4.01 GB": what is shown is not less than what is meant, so that whoever gives it gives enough.
function units.need(value)
  local step = 10 ^ math.max(0, math.floor(math.log10(math.max(value, 1))) - 2)
  return units.bytes(math.ceil(value / step) * step)
end

-- count(14.7e9) -> "14.7B"
function units.count(value)
  local n, name, step = scaled(value, 1000, { "", "k", "M", "B", "T" })
  if step == 1 then return n == math.floor(n) and ("%d"):format(n) or digits(n) end
  return digits(n) .. name
end

-- seconds(200) -> "3 min 20 s"
function units.seconds(value)
  if value ~= value or value == math.huge then return "?" end
  if value < 1e-3 then return digits(value * 1e6) .. " us" end
  if value < 1 then return digits(value * 1e3) .. " ms" end
  if value < 60 then return digits(value) .. " s" end
  local whole = math.floor(value + 0.5)
  if whole < 3600 then return ("%d min %02d s"):format(whole / 60, whole % 60) end
  if whole < 86400 then return ("%d h %02d min"):format(whole / 3600, whole % 3600 / 60) end
  return ("%d d %02d h"):format(whole / 86400, whole % 86400 / 3600)
end

-- rate(3.2e10) -> "32.0 GB/s"; flops(4.3e11) -> "430 GFLOP/s"
function units.rate(value) return units.bytes(value) .. "/s" end
function units.flops(value)
  local n, name = scaled(value, 1000, { "", "K", "M", "G", "T", "P" })
  return digits(n) .. " " .. name .. "FLOP/s"
end

-- operations(3.1e11) -> "310 GFLOP"
function units.operations(value) return (units.flops(value):gsub("/s$", "")) end

-- percent(0.123) -> "12.3 %"
function units.percent(share) return ("%.1f %%"):format(share * 100) end

return units
