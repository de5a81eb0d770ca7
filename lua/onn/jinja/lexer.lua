-- Source text of a template -> tokens {type, value, line}, with the white space rules that chat templates are written for:
-- trim_blocks and lstrip_blocks on, one newline at the very end dropped.
local text = require "onn.jinja.text"
local fault = require "onn.jinja.fault"

local lexer = {}

local OPERATORS = {}
for _, op in ipairs { "+", "-", "/", "//", "*", "%", "**", "~", "[", "]", "(", ")", "{", "}", "==", "!=", ">", ">=", "<",
  "<=", "=", ".", ":", "|", ",", ";" } do
  OPERATORS[op] = true
end
local CLOSES = { [")"] = "(", ["]"] = "[", ["}"] = "{" }
local ESCAPES = { n = "\n", t = "\t", r = "\r", a = "\a", b = "\b", f = "\f", v = "\v", ["\\"] = "\\", ["'"] = "'",
  ['"'] = '"', ["\n"] = "" }

local function count_lines(s)
  local _, n = s:gsub("\n", "")
  return n
end

local function unescape(s, line)
  if not s:find("\\", 1, true) then return s end
  local parts, i = {}, 1
  local function hex(digits)
    local code = s:match("^" .. ("%x"):rep(digits), i + 2)
    code = code and tonumber(code, 16)
    if not code or code > 0x10FFFF then fault.raise("bad \\" .. s:sub(i + 1, i + 1) .. " escape in a string", "format", line) end
    parts[#parts + 1] = text.from_code(code)
    i = i + 2 + digits
  end
  while true do
    local at = s:find("\\", i, true)
    parts[#parts + 1] = s:sub(i, (at or #s + 1) - 1)
    if not at then break end
    i = at
    local c = s:sub(i + 1, i + 1)
    local octal = s:match("^[0-7][0-7]?[0-7]?", i + 1)
    if ESCAPES[c] then
      parts[#parts + 1], i = ESCAPES[c], i + 2
    elseif c == "x" then
      hex(2)
    elseif c == "u" then
      hex(4)
    elseif c == "U" then
      hex(8)
    elseif octal then
      parts[#parts + 1], i = text.from_code(tonumber(octal, 8)), i + 1 + #octal
    else
      parts[#parts + 1], i = "\\" .. c, i + 2
    end
  end
  return table.concat(parts)
end

-- The offset of the quote that closes the string begun at i; nil if it never closes.
local function string_end(source, i)
  local quote, at = source:sub(i, i), i + 1
  while true do
    local next_at = source:find("[\\" .. quote .. "]", at)
    if not next_at then return nil end
    if source:sub(next_at, next_at) == quote then return next_at end
    at = next_at + 2
  end
end

local function number_token(source, i)
  local after_dot = source:sub(i - 1, i - 1) == "."
  local base = source:match("^0[xX][%x_]+", i) or source:match("^0[oO][0-7_]+", i) or source:match("^0[bB][01_]+", i)
  if base then
    local digits = base:gsub("_", "")
    local radix = ({ x = 16, o = 8, b = 2 })[base:sub(2, 2):lower()]
    return "integer", tonumber(digits:sub(3), radix), i + #base
  end
  local whole = source:match("^%d[%d_]*", i)
  local fraction = not after_dot and source:match("^%.%d[%d_]*", i + #whole) or ""
  local exponent = not after_dot and source:match("^[eE][+-]?%d[%d_]*", i + #whole + #fraction) or ""
  local literal = whole .. fraction .. exponent
  local value = tonumber((literal:gsub("_", "")))
  return (fraction .. exponent) == "" and "integer" or "float", value, i + #literal
end

-- Tokens between a tag's opening and its end. closing is "%}" or "}}". Returns the offset behind the tag.
local function read_tag(source, i, closing, line, tokens)
  local open = {}
  local end_type = closing == "%}" and "block_end" or "variable_end"
  local function add(type, value) tokens[#tokens + 1] = { type = type, value = value, line = line } end
  while true do
    local next_i = text.skip_space(source, i)
    line = line + count_lines(source:sub(i, next_i - 1))
    i = next_i
    if i > #source then fault.raise("a tag is not closed: expected '" .. closing .. "'", "format", line) end
    local c, two = source:sub(i, i), source:sub(i, i + 1)
    if #open == 0 then
      local sign = (c == "-" or (c == "+" and closing == "%}")) and c or ""
      if source:sub(i + #sign, i + #sign + 1) == closing then
        add(end_type)
        local from = i + #sign + 2
        local behind = from
        if sign == "-" then
          behind = text.skip_space(source, from)
        elseif sign == "" and closing == "%}" and source:sub(from, from) == "\n" then
          behind = from + 1
        end
        return behind, line + count_lines(source:sub(from, behind - 1))
      end
    end
    if c:find("%d") then
      local type, value
      type, value, i = number_token(source, i)
      if type == "integer" and value >= 2 ^ 53 then fault.raise("a whole number is beyond 2^53", "unsupported", line) end
      add(type, value)
    elseif c:find("[%a_\128-\255]") then
      local name = source:match("^[%w_\128-\255]+", i)
      add("name", name)
      i = i + #name
    elseif c == "'" or c == '"' then
      local last = string_end(source, i)
      if not last then fault.raise("a string is not closed", "format", line) end
      local raw = source:sub(i + 1, last - 1)
      add("string", unescape(raw, line))
      line, i = line + count_lines(raw), last + 1
    else
      local op = OPERATORS[two] and two or (OPERATORS[c] and c)
      if not op then fault.raise("unexpected character '" .. c .. "'", "format", line) end
      if op == "(" or op == "[" or op == "{" then
        open[#open + 1] = op
      elseif CLOSES[op] and table.remove(open) ~= CLOSES[op] then
        fault.raise("unexpected '" .. op .. "'", "format", line)
      end
      add(op)
      i = i + #op
    end
  end
end

-- White space in front of a block or comment tag goes if nothing else stands before it on its line.
local function trim_before(data, sign, is_block, line_starts)
  if sign == "-" then return text.rstrip(data) end
  if sign == "+" or not is_block then return data end
  local head, tail = data:match("^(.*\n)(.*)$")
  if not head then head, tail = "", data end
  if (head ~= "" or line_starts) and tail ~= "" and text.is_space(tail) then return head end
  return data
end

local function find_endraw(source, i)
  while true do
    local first, last, sign = source:find("{%%([-+]?)%s*endraw%s*", i)
    if not first then return nil end
    local closing = source:match("^[-+]?%%}", last + 1)
    if closing then return first, sign, closing, last + #closing end
    i = first + 2
  end
end

-- tokens(source): array of {type, value, line}; the last has the type "eof". Raises a fault.
function lexer.tokens(source)
  source = source:gsub("\r\n?", "\n"):gsub("\n$", "")
  local tokens, i, line = {}, 1, 1
  local function data(s)
    if s ~= "" then tokens[#tokens + 1] = { type = "data", value = s, line = line } end
  end
  while true do
    local line_starts = i == 1 or source:sub(i - 1, i - 1) == "\n"
    local at, _, kind, sign = source:find("{([{%%#])([-+]?)", i)
    if not at then
      data(source:sub(i))
      break
    end
    local before = source:sub(i, at - 1)
    data(trim_before(before, sign, kind ~= "{", line_starts))
    line = line + count_lines(before)
    local inside = at + 2 + #sign
    local raw, raw_end = source:match("^%s*raw%s*(%-?)%%}()", inside)
    if kind == "#" then
      local last = source:find("#}", inside, true)
      if not last then fault.raise("a comment is not closed", "format", line) end
      local close_sign = last > inside and source:sub(last - 1, last - 1) or ""
      i = last + 2
      if close_sign == "-" then
        i = text.skip_space(source, i)
      elseif close_sign ~= "+" and source:sub(i, i) == "\n" then
        i = i + 1
      end
      line = line + count_lines(source:sub(at, i - 1))
    elseif kind == "%" and raw then
      local from = raw == "-" and text.skip_space(source, raw_end) or raw_end
      local first, end_sign, closing, last = find_endraw(source, from)
      if not first then fault.raise("a raw block is not closed", "format", line) end
      data(trim_before(source:sub(from, first - 1), end_sign, true, source:sub(from - 1, from - 1) == "\n"))
      i = last + 1
      if closing == "-%}" then
        i = text.skip_space(source, i)
      elseif closing == "%}" and source:sub(i, i) == "\n" then
        i = i + 1
      end
      line = line + count_lines(source:sub(at, i - 1))
    else
      tokens[#tokens + 1] = { type = kind == "%" and "block_begin" or "variable_begin", line = line }
      i, line = read_tag(source, inside, kind == "%" and "%}" or "}}", line, tokens)
    end
  end
  tokens[#tokens + 1] = { type = "eof", line = line }
  return tokens
end

return lexer
