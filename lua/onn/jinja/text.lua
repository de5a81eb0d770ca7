-- Text as Python sees it: UTF-8 strings whose length, index and order count code points.
local text = {}

local CHAR = "[%z\1-\127\192-\255]?[\128-\191]*"

local function is_ascii(s) return not s:find("[\128-\255]") end

-- chars(s): the code points of s as an array of strings. A stray continuation byte stays with its neighbour.
function text.chars(s)
  local list = {}
  for c in s:gmatch(CHAR) do
    if c ~= "" then list[#list + 1] = c end
  end
  return list
end

function text.length(s)
  if is_ascii(s) then return #s end
  local n = 0
  for c in s:gmatch(CHAR) do
    if c ~= "" then n = n + 1 end
  end
  return n
end

-- offset_to_index(s, byte): how many code points lie before the 1-based byte offset.
function text.offset_to_index(s, byte) return text.length(s:sub(1, byte - 1)) end

-- code(c): the code point of one UTF-8 character.
function text.code(c)
  local a, b, d, e = c:byte(1, 4)
  if a < 0x80 or not b then return a end
  if a < 0xE0 then return (a - 0xC0) * 64 + (b - 0x80) end
  if a < 0xF0 then return (a - 0xE0) * 4096 + (b - 0x80) * 64 + ((d or 0x80) - 0x80) end
  return (a - 0xF0) * 262144 + (b - 0x80) * 4096 + ((d or 0x80) - 0x80) * 64 + ((e or 0x80) - 0x80)
end

-- from_code(n): UTF-8 of one code point below 0x110000.
function text.from_code(n)
  local floor, char = math.floor, string.char
  if n < 0x80 then return char(n) end
  if n < 0x800 then return char(0xC0 + floor(n / 64), 0x80 + n % 64) end
  if n < 0x10000 then return char(0xE0 + floor(n / 4096), 0x80 + floor(n / 64) % 64, 0x80 + n % 64) end
  return char(0xF0 + floor(n / 262144), 0x80 + floor(n / 4096) % 64, 0x80 + floor(n / 64) % 64, 0x80 + n % 64)
end

-- White space by Python's str.isspace(): ASCII's six, four separators, and Unicode's.
local SPACE = { ["\194\133"] = true, ["\194\160"] = true, ["\225\154\128"] = true, ["\226\128\168"] = true,
  ["\226\128\169"] = true, ["\226\128\175"] = true, ["\226\129\159"] = true, ["\227\128\128"] = true }
for byte = 0x80, 0x8A do SPACE["\226\128" .. string.char(byte)] = true end
local ASCII_SPACE = "^[\9-\13\28-\32]+"

-- skip_space(s, i): the first byte offset at or after i where no white space starts.
function text.skip_space(s, i)
  while true do
    local _, last = s:find(ASCII_SPACE, i)
    if last then i = last + 1 end
    if SPACE[s:sub(i, i + 1)] then
      i = i + 2
    elseif SPACE[s:sub(i, i + 2)] then
      i = i + 3
    elseif not last then
      return i
    end
  end
end

function text.is_space(s) return s ~= "" and text.skip_space(s, 1) > #s end

function text.lstrip(s) return s:sub(text.skip_space(s, 1)) end

function text.rstrip(s)
  local last = #s
  while last > 0 do
    local byte = s:byte(last)
    if (byte >= 9 and byte <= 13) or (byte >= 28 and byte <= 32) then
      last = last - 1
    elseif byte >= 0x80 and last >= 2 and SPACE[s:sub(last - 1, last)] then
      last = last - 2
    elseif byte >= 0x80 and last >= 3 and SPACE[s:sub(last - 2, last)] then
      last = last - 3
    else
      break
    end
  end
  return s:sub(1, last)
end

function text.strip(s) return text.lstrip(text.rstrip(s)) end

-- strip_set(s, set, left, right): removes characters that occur in the string `set` from the ends.
function text.strip_set(s, set, left, right)
  local within, list = {}, text.chars(s)
  for _, c in ipairs(text.chars(set)) do within[c] = true end
  local first, last = 1, #list
  while left and first <= last and within[list[first]] do first = first + 1 end
  while right and last >= first and within[list[last]] do last = last - 1 end
  return table.concat(list, "", first, last)
end

-- Simple case pairs outside ASCII: Latin, Greek, Cyrillic, Armenian, full-width letters. Other scripts keep their letters.
local UPPER, LOWER = {}, {}
local function pair(upper, lower)
  local u, l = text.from_code(upper), text.from_code(lower)
  LOWER[u], UPPER[l] = l, u
end
for c = 0xC0, 0xDE do if c ~= 0xD7 then pair(c, c + 32) end end
for c = 0x100, 0x136, 2 do if c ~= 0x130 then pair(c, c + 1) end end
for c = 0x139, 0x147, 2 do pair(c, c + 1) end
for c = 0x14A, 0x176, 2 do pair(c, c + 1) end
for c = 0x179, 0x17D, 2 do pair(c, c + 1) end
pair(0x178, 0xFF)
for c = 0x391, 0x3AB do if c ~= 0x3A2 then pair(c, c + 32) end end
for c = 0x410, 0x42F do pair(c, c + 32) end
for c = 0x400, 0x40F do pair(c, c + 80) end
for c = 0x388, 0x38A do pair(c, c + 37) end
for _, range in ipairs { { 0x1CD, 0x1DB }, { 0x1DE, 0x1EE }, { 0x1F8, 0x21E }, { 0x222, 0x232 }, { 0x460, 0x480 }, { 0x48A, 0x4BE },
  { 0x4C1, 0x4CD }, { 0x4D0, 0x52E }, { 0x1E00, 0x1E94 }, { 0x1EA0, 0x1EFE } } do
  for c = range[1], range[2], 2 do pair(c, c + 1) end
end
for c = 0x531, 0x556 do pair(c, c + 48) end
for c = 0xFF21, 0xFF3A do pair(c, c + 32) end
pair(0x386, 0x3AC) pair(0x38C, 0x3CC) pair(0x38E, 0x3CD) pair(0x38F, 0x3CE)
UPPER["\207\130"] = "\206\163" -- the sigma that ends words

local function map_case(s, ascii, wide)
  s = ascii(s)
  if is_ascii(s) then return s end
  return (s:gsub("[\194-\244][\128-\191]+", wide))
end
function text.upper(s) return (map_case(s, string.upper, UPPER):gsub("\195\159", "SS")) end
function text.lower(s) return map_case(s, string.lower, LOWER) end

-- is_letter(c): ASCII letters, and every character beyond ASCII that is neither white space nor punctuation below U+00C0.
function text.is_letter(c)
  if #c == 1 then return c:find("^%a") ~= nil end
  return not SPACE[c] and text.code(c) >= 0xC0 and c ~= "\195\151" and c ~= "\195\183"
end

-- capitalize(s), title(s): as the Python string methods; title starts a word after every non-letter.
function text.capitalize(s)
  local list = text.chars(s)
  if #list == 0 then return s end
  return text.upper(list[1]) .. text.lower(table.concat(list, "", 2))
end

function text.title(s)
  local list, inside = text.chars(s), false
  for i, c in ipairs(list) do
    local letter = text.is_letter(c)
    if letter then list[i] = inside and text.lower(c) or text.upper(c) end
    inside = letter
  end
  return table.concat(list)
end

-- find_last(s, part): byte offset of the last occurrence; nil if absent.
function text.find_last(s, part)
  local a = s:reverse():find(part:reverse(), 1, true)
  return a and #s - #part - a + 2
end

-- replace(s, old, new, count): plain replacement, at most `count` times if given; an empty `old` is put between characters.
function text.replace(s, old, new, count)
  local parts, from, left = {}, 1, count or math.huge
  if old == "" then
    local list = text.chars(s)
    for i = 1, #list + 1 do
      if left > 0 then
        parts[#parts + 1], left = new, left - 1
      end
      parts[#parts + 1] = list[i]
    end
    return table.concat(parts)
  end
  while left > 0 do
    local a, b = s:find(old, from, true)
    if not a then break end
    parts[#parts + 1] = s:sub(from, a - 1)
    parts[#parts + 1] = new
    from, left = b + 1, left - 1
  end
  parts[#parts + 1] = s:sub(from)
  return table.concat(parts)
end

function text.occurrences(s, part)
  if part == "" then return text.length(s) + 1 end
  local n, from = 0, 1
  while true do
    local _, b = s:find(part, from, true)
    if not b then return n end
    n, from = n + 1, b + 1
  end
end

return text
