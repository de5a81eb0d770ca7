-- The command line of recipes: options declared as data, errors of one line, tables and JSON on standard output.
--   local opt = cli.parse {
--     name = "tokenize", summary = "text to token ids and back", example = 'onn tokenize models/tiny "Hello"',
--     arguments = { { "MODEL", "model directory" }, { "TEXT", "text; stdin without it", optional = true } },
--     options = { { "decode", help = "turn ids back into text" }, { "max-tokens", type = "integer", default = 50, min = 1 } },
--   }
-- An option's type: flag (default), string, integer, number, share, bytes, duration, device, list (of = a type), pair.
-- Its fields: default, help, choices, min, max, short = "o", metavar, negate = true (--no-NAME too), optional = true
-- (the value may be left out: true), repeats = true (a list of all values; pair: one table).
local argparse = require "argparse"
local nearest = require "onn.nearest"
local types = require "onn.cli.types"

local cli = {}

local state = { json = false, quiet = false }

local common = {
  { "json", help = "one JSON document on standard output and nothing else" },
  { "dry-run", help = "plan and estimates only; loads no weights" },
  { "device", type = "device", default = "auto", help = "cpu, cuda, cuda:N or auto" },
  { "memory", type = "bytes", help = "device budget, such as 4GB (default: 80 % of what is available)" },
  { "ram", type = "bytes", help = "host budget: what onn may hold in RAM" },
  { "threads", type = "integer", min = 1, max = 4096, help = "CPU threads (default: all)" },
  { "seed", type = "integer", min = 0, default = 0, help = "seed of every random choice" },
  { "dtype", type = "string", choices = { "auto", "f32", "bf16" }, default = "auto", help = "arithmetic" },
  { "config", type = "string", metavar = "FILE", help = "universal_config.json to take settings from; options win over it" },
  { "quiet", short = "q", help = "no progress and no notes" },
  { "profile", type = "string", metavar = "FILE", help = "write a trace of the run for chrome://tracing" },
}

local option_fields = { "type", "default", "help", "choices", "min", "max", "short", "metavar", "negate", "optional",
  "repeats", "of", 1, 2 }

-- --- errors ----------------------------------------------------------------------------------------------------------

local user_error = { __tostring = function(self) return self.message end }

-- fail(message, code): ends the recipe with `onn: message` and exit status `code` (1; 2 for usage).
function cli.fail(message, code)
  error(setmetatable({ user = true, message = tostring(message), code = code or 1 }, user_error), 0)
end

-- check(value, message, ...) -> value, or fails with the message; takes what the core gives: nil, message, "io".
function cli.check(value, message, code)
  if value == nil or value == false then cli.fail(message or "failed", type(code) == "number" and code or 1) end
  return value
end

-- is_user_error(e): whether a caught error is one that cli.fail raised.
function cli.is_user_error(e) return getmetatable(e) == user_error end

-- --- parsing ---------------------------------------------------------------------------------------------------------

local function key_of(name) return (name:lower():gsub("-", "_")) end

local function gather(spec)
  local list, by_flag = {}, {}
  local function add(option)
    local name = option[1]
    for field in pairs(option) do
      local known = false
      for _, f in ipairs(option_fields) do known = known or f == field end
      assert(known, ("option '%s' has an unknown field '%s'"):format(name, tostring(field)))
    end
    local o = { name = name, key = key_of(name), type = "flag", help = option[2] }
    for field, value in pairs(option) do
      if type(field) == "string" then o[field] = value end
    end
    assert(o.type == "flag" or types[o.type], ("option '%s' has an unknown type '%s'"):format(name, o.type))
    list[#list + 1] = o
    by_flag["--" .. name] = o
    if o.negate then by_flag["--no-" .. name] = o end
    if o.short then by_flag["-" .. o.short] = o end
  end
  for _, option in ipairs(spec.options or {}) do add(option) end
  if spec.common ~= false then
    for _, option in ipairs(common) do
      if not by_flag["--" .. option[1]] then add(option) end
    end
  end
  return list, by_flag
end

local function describe_default(o)
  if o.default == nil or o.default == false or o.type == "flag" then return o.help or "" end
  local text = type(o.default) == "table" and table.concat(o.default, ",") or tostring(o.default)
  if o.type == "bytes" and type(o.default) == "number" then text = require("onn.units").bytes(o.default):gsub(" ", "") end
  if o.type == "duration" and type(o.default) == "number" then text = text .. "s" end
  return ("%s (default: %s)"):format(o.help or "", text):gsub("^ ", "")
end

local value_names = {
  integer = "N", number = "X", share = "SHARE", bytes = "SIZE", duration = "TIME", list = "LIST", pair = "KEY=VALUE",
}

local function metavar(o)
  if o.metavar then return o.metavar end
  if o.choices then return table.concat(o.choices, "|") end
  return value_names[o.type] or o.key:upper()
end

local function convert(o, text, flag, fail)
  local value, message = types.convert(o, text)
  if value == nil then fail(("%s: %s"):format(flag, message)) end
  return value
end

-- argparse writes the usage and the help and takes the arguments; options' values are taken here, because a value may
-- begin with a minus sign.
local function make_parser(spec, options, fail)
  local example = spec.example and "example:\n  " .. spec.example
  local parser = argparse("onn " .. spec.name, spec.summary, example):help_max_width(100):add_help(false)
  for _, a in ipairs(spec.arguments or {}) do
    local argument = parser:argument(a[1], a[2]):target(key_of(a[1]))
    if a.many then
      argument:args(a.optional and "*" or "+")
    elseif a.optional then
      argument:args "?"
    end
  end
  for _, o in ipairs(options) do
    local flag = (o.short and "-" .. o.short .. " " or "") .. "--" .. o.name
    local help = describe_default(o)
    if o.type == "flag" then
      parser:flag(flag, help):target(o.key)
      if o.negate then parser:flag("--no-" .. o.name, "the opposite of --" .. o.name):target("no_" .. o.key) end
    else
      parser:option(flag, help):target(o.key):args(o.optional and "?" or 1):argname("<" .. metavar(o) .. ">")
    end
  end
  parser:flag("-h --help", "this text")
  parser.error = function(_, message) fail(message) end
  return parser
end

local function split_flag(word)
  local flag, value = word:match "^(%-%-[^=]+)=(.*)$"
  return flag or word, value
end

local function store(opt, o, value)
  opt._given[o.key] = true
  if o.type == "pair" then
    opt[o.key] = opt[o.key] or {}
    opt[o.key][value[1]] = value[2]
  elseif o.repeats then
    opt[o.key] = opt[o.key] or {}
    table.insert(opt[o.key], value)
  else
    opt[o.key] = value
  end
end

-- take_options(): moves options out of `words` into `opt`. @return : the words that remain, arguments of the recipe.
local function take_options(words, by_flag, opt, fail)
  local flags, rest, i = { "--help" }, {}, 1
  for flag in pairs(by_flag) do flags[#flags + 1] = flag end
  while words[i] do
    local word = words[i]
    local flag, value = split_flag(word)
    local o = by_flag[flag]
    if word == "--" then
      for j = i + 1, #words do rest[#rest + 1] = words[j] end
      break
    elseif o and o.type == "flag" then
      if value then fail(("%s takes no value, got '%s'"):format(flag, value)) end
      store(opt, o, flag ~= "--no-" .. o.name)
    elseif o then
      local following = words[i + 1]
      if not value and following and following ~= "--" and not by_flag[(split_flag(following))] then
        if not (o.optional and following:find "^%-") then value, i = following, i + 1 end
      end
      if value then
        store(opt, o, convert(o, value, flag, fail))
      elseif o.optional then
        store(opt, o, true)
      else
        fail(("%s needs a value (%s)"):format(flag, metavar(o)))
      end
    elseif word:find "^%-[^%d]" then
      fail(("unknown option '%s'%s"):format(flag, nearest.hint(flag, flags)))
    else
      rest[#rest + 1] = word
    end
    i = i + 1
  end
  return rest
end

-- parse(spec, words) -> opt: a key for each option and argument (lower case, _ for -), and opt._given[key] = true for
-- those that were on the command line. Ends with exit status 2 on misuse, 0 after --help.
function cli.parse(spec, words)
  words = words or arg
  local options, by_flag = gather(spec)
  local opt = { _given = {} }
  local function fail(message)
    cli.fail(("%s: %s (`onn %s --help` explains)"):format(spec.name, message, spec.name), 2)
  end
  local parser = make_parser(spec, options, fail)
  for _, word in ipairs(words) do
    if word == "--" then break end
    if word == "--help" or word == "-h" then
      print(parser:get_help())
      os.exit(0)
    end
  end
  local rest = take_options(words, by_flag, opt, fail)
  table.insert(rest, 1, "--")
  local taken = parser:parse(rest)
  for _, a in ipairs(spec.arguments or {}) do
    local key = key_of(a[1])
    opt[key] = taken[key]
    opt._given[key] = taken[key] ~= nil or nil
  end
  for _, o in ipairs(options) do
    if opt[o.key] == nil then opt[o.key] = o.default end
    if opt[o.key] == nil and o.type == "flag" then opt[o.key] = false end
  end
  state.json, state.quiet = opt.json or false, opt.quiet or false
  return opt
end

-- --- output ----------------------------------------------------------------------------------------------------------

-- print(...): to standard output, unless --json (which owns it) or --quiet was given.
function cli.print(...)
  if not state.json and not state.quiet then print(...) end
end

-- note(format, ...): a line on standard error, unless --quiet.
function cli.note(format, ...)
  if not state.quiet then io.stderr:write((select("#", ...) > 0 and format:format(...) or format), "\n") end
end

-- json(value): one JSON document on standard output, whatever else was asked.
function cli.json(value)
  io.stdout:write(require("onn.core.json").encode(value), "\n")
  io.stdout:flush()
end

-- wants_json(), is_quiet(): what the command line said.
function cli.wants_json() return state.json end
function cli.is_quiet() return state.quiet end

local function width_of(text) return select(2, text:gsub("[^\128-\191]", "")) end

-- table(rows, columns) -> aligned text. A column is a key or { key, title=, align="left"|"right", format="%.2f" or function };
-- numbers align right by themselves, nil shows as "-".
function cli.table(rows, columns)
  local cells, widths, right, normal = { {} }, {}, {}, {}
  for c, column in ipairs(columns) do
    if type(column) ~= "table" then column = { column } end
    normal[c] = column
    cells[1][c] = tostring(column.title or column[1])
    right[c] = column.align == "right" or (column.align == nil and rows[1] ~= nil and type(rows[1][column[1]]) == "number")
  end
  for r, row in ipairs(rows) do
    cells[r + 1] = {}
    for c, column in ipairs(normal) do
      local value, format = row[column[1]], column.format
      if value == nil then
        value = "-"
      elseif type(format) == "function" then
        value = format(value, row)
      elseif format then
        value = format:format(value)
      end
      cells[r + 1][c] = tostring(value)
    end
  end
  for _, row in ipairs(cells) do
    for c, text in ipairs(row) do widths[c] = math.max(widths[c] or 0, width_of(text)) end
  end
  local lines = {}
  for r, row in ipairs(cells) do
    local parts = {}
    for c, text in ipairs(row) do
      local pad = (" "):rep(widths[c] - width_of(text))
      parts[c] = right[c] and pad .. text or text .. pad
    end
    lines[r] = table.concat(parts, "  "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

return cli
