-- What a row of training data may look like, and reading rows from files.
--   a row becomes { text } | { prompt, completion } | { messages, tools }
local json = require "onn.core.json"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local formats = {}

-- The pairs of keys that are looked for, in this order.
local PAIRS = { { "prompt", "completion" }, { "instruction", "output" }, { "input", "output" }, { "question", "answer" } }
local EXPECTED = "expected text; prompt and completion; input and output; instruction and output; question and answer; messages; "
  .. "or conversations"
local ROLES = { human = "user", user = "user", gpt = "assistant", assistant = "assistant", model = "assistant", system = "system",
  tool = "tool", observation = "tool" }

local function keys_of(row)
  local keys = {}
  for key in pairs(row) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  return table.concat(keys, ", ")
end

local function present(v) return v ~= nil and v ~= json.null end

local function kind_of(v)
  if not present(v) then return "nothing" end
  return type(v) == "table" and (v[1] ~= nil and "a list" or "an object") or "a " .. type(v)
end

-- row[key], which must be text; nil, message otherwise.
local function text_at(row, key)
  if type(row[key]) == "string" then return row[key] end
  return nil, ("'%s' is %s; expected text"):format(key, kind_of(row[key]))
end

local function check_messages(messages)
  if type(messages) ~= "table" or #messages == 0 then
    return nil, "'messages' is " .. kind_of(messages) .. "; expected a list of messages"
  end
  for i, message in ipairs(messages) do
    if type(message) ~= "table" or type(message.role) ~= "string" then return nil, ("message %d has no 'role'"):format(i) end
    if not present(message.content) and not present(message.tool_calls) then return nil, ("message %d has no 'content'"):format(i) end
  end
  return messages
end

local function from_conversations(turns)
  if type(turns) ~= "table" then return nil, "'conversations' is " .. kind_of(turns) .. "; expected a list" end
  local messages = {}
  for i, turn in ipairs(turns) do
    if type(turn) ~= "table" then return nil, ("turn %d is %s; expected an object"):format(i, kind_of(turn)) end
    if turn.role then
      messages[i] = turn
    else
      local role = ROLES[turn.from]
      if not role then return nil, ("turn %d is from '%s'; expected human, gpt, system or tool"):format(i, tostring(turn.from)) end
      messages[i] = { role = role, content = turn.value }
    end
  end
  return check_messages(messages)
end

local function pair(row, prompt_key, completion_key)
  local prompt, completion = row[prompt_key], row[completion_key]
  local message
  if type(prompt) == "table" and type(completion) == "table" then -- both as messages
    local messages = {}
    for _, m in ipairs(prompt) do messages[#messages + 1] = m end
    for _, m in ipairs(completion) do messages[#messages + 1] = m end
    messages, message = check_messages(messages)
    return messages and { messages = messages, tools = row.tools, prompt_messages = #prompt }, message
  end
  prompt, message = text_at(row, prompt_key)
  if not prompt then return nil, message end
  completion, message = text_at(row, completion_key)
  if not completion then return nil, message end
  return { prompt = prompt, completion = completion }
end

-- example(row, opt): the row's example, or nil, message. opt: prompt_key, completion_key.
function formats.example(row, opt)
  if type(row) == "string" then return { text = row } end
  if type(row) ~= "table" then return nil, ("a row is %s; expected an object"):format(kind_of(row)) end
  if opt.prompt_key or opt.completion_key then
    local prompt_key, completion_key = opt.prompt_key or "prompt", opt.completion_key or "completion"
    for _, key in ipairs { prompt_key, completion_key } do
      if not present(row[key]) then return nil, ("there is no '%s'; the keys are %s"):format(key, keys_of(row)) end
    end
    return pair(row, prompt_key, completion_key)
  end
  local messages, message
  if present(row.messages) then
    messages, message = check_messages(row.messages)
    return messages and { messages = messages, tools = row.tools }, message
  elseif present(row.conversations) then
    messages, message = from_conversations(row.conversations)
    return messages and { messages = messages, tools = row.tools }, message
  end
  for _, keys in ipairs(PAIRS) do
    if present(row[keys[1]]) and present(row[keys[2]]) then
      local example
      example, message = pair(row, keys[1], keys[2])
      if example and keys[1] == "instruction" and type(row.input) == "string" and row.input ~= "" then
        example.prompt = example.prompt .. "\n\n" .. row.input
      end
      return example, message
    end
  end
  if present(row.text) then
    local text
    text, message = text_at(row, "text")
    return text and { text = text }, message
  end
  return nil, ("no known keys in this row (%s); %s, or name them with --prompt-key and --completion-key"):format(keys_of(row), EXPECTED)
end

-- class(row, classes): the number of the row's label among {[name] = number}, numbers being names of themselves; or nil, message.
-- The row has text and label and no second text.
function formats.class(row, classes)
  if type(row) ~= "table" then return nil, ("a row is %s; expected an object"):format(kind_of(row)) end
  if present(row.text_pair) then return nil, "'text_pair': pairs of texts are not classified" end
  local text, message = text_at(row, "text")
  if not text then return nil, message end
  local label = row.label
  if type(label) == "boolean" then label = tostring(label) end
  if type(label) == "number" then label = ("%.17g"):format(label) end
  if type(label) ~= "string" then return nil, ("'label' is %s; expected text or a number"):format(kind_of(label)) end
  local id = classes[label]
  if id then return id end
  local number, count, names = tonumber(label), 0, {}
  for name, k in pairs(classes) do count, names[k + 1] = count + 1, name end
  if number and number >= 0 and number < count and number == math.floor(number) then return number end
  return nil, ("label '%s' is none of the model's: %s"):format(label:sub(1, 40), table.concat(names, ", ", 1, math.min(#names, 20)))
end

-- labels(path or rows): the labels of a file's rows in the order of their names (numbers by size), or nil where its first row has none;
-- nil, message, code.
function formats.labels(source)
  local seen, list = {}, {}
  local function each(row)
    local label = type(row) == "table" and row.label or nil
    if type(row) ~= "table" or not present(row.label) then return nil, "there is no 'label'" end
    if row.label == false then label = "false" end
    if type(label) == "number" then label = ("%.17g"):format(label) end
    label = tostring(label)
    if not seen[label] then seen[label], list[#list + 1] = true, label end
    return true
  end
  if type(source) == "table" then
    for i, row in ipairs(source) do
      local ok, wrong = each(row)
      if not ok then return nil, ("row %d: %s"):format(i, wrong), "format" end
    end
  else
    local kind, message, code = formats.kind(source)
    if not kind then return nil, message, code end
    if kind ~= "lines" and kind ~= "array" then return nil, source .. ": expected rows with text and label", "argument" end
    local ok
    ok, message, code = formats.rows(source, kind, each)
    if not ok then return nil, message, code end
  end
  table.sort(list, function(a, b)
    local x, y = tonumber(a), tonumber(b)
    if x and y then return x < y end
    if x or y then return x ~= nil end
    return a < b
  end)
  return list
end

-- Files -----------------------------------------------------------------------------------------------------------------

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end

-- What people have instead, told by how it begins: nil, or why it is declined.
local function declined(head, path)
  if head:sub(1, 4) == "PAR1" then
    return ("%s is a Parquet file; convert it first: python3 -c \"import sys, pandas; "
      .. "pandas.read_parquet(sys.argv[1]).to_json('data.jsonl', orient='records', lines=True)\" %s"):format(path, quoted(path))
  elseif head:sub(1, 6) == "\147NUMPY" then
    return ("%s is a NumPy array; convert token ids first: python3 -c \"import sys, numpy; from safetensors.numpy import save_file; "
      .. "save_file({'input_ids': numpy.load(sys.argv[1])}, 'data.safetensors')\" %s"):format(path, quoted(path))
  elseif head:sub(1, 2) == "\31\139" then
    return path .. " is compressed; unpack it first (gunzip)"
  elseif head:sub(1, 4) == "PK\3\4" then
    return path .. " is a zip archive; unpack it first (unzip)"
  elseif head:find("version https://git-lfs", 1, true) == 1 then
    return path .. " is a Git LFS pointer, not the data; fetch the file itself (git lfs pull)"
  end
end

-- kind(path): "lines", "array", "text" or "safetensors"; nil, message, code for a file that cannot be read or is none of these.
function formats.kind(path)
  local stat, message, code = system.stat(path)
  if not stat then return nil, message, code end
  if stat.kind ~= "file" then
    return nil, ("%s is %s; a file is expected"):format(path, stat.kind == "directory" and "a directory" or "no regular file"), "io"
  end
  local file
  file, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  local head
  head, message = file:read(4096)
  file:close()
  if not head then
    if message then return nil, path .. ": " .. message, "io" end
    return nil, path .. ": the file is empty", "format"
  end
  local why = declined(head, path)
  if why then return nil, why, "unsupported" end
  local extension = path:lower():match "%.(%w+)$"
  if extension == "safetensors" then return "safetensors" end
  if head:find("%z") then return nil, path .. " is neither text nor JSON: it holds NUL bytes", "format" end
  if extension == "txt" or extension == "md" then return "text" end
  local first = head:gsub("^\239\187\191", ""):match "%S"
  if extension == "jsonl" or extension == "ndjson" or extension == "json" then return first == "[" and "array" or "lines" end
  if first == "[" then return "array" end
  if first == "{" then return "lines" end
  return "text"
end

-- read_all(path): the whole file without a byte order mark, or nil, message, code. What takes more than a quarter of the memory
-- budget is refused.
function formats.read_all(path)
  local limit = math.min(tensors.memory().budget or math.huge, system.available_ram()) / 4
  local content, message, code = system.read_file(path, math.floor(limit))
  if not content then return nil, message, code end
  return (content:gsub("^\239\187\191", ""))
end

local BLOCK, LONGEST_LINE = 2 ^ 16, 2 ^ 26

-- Iterates over the lines of an open file, NUL bytes and all, without their ends; nil, message for a line beyond 64 MiB.
local function each_line(file)
  local held, from = "", 1
  return function()
    local parts, size = nil, 0
    while true do
      local at = held:find("\n", from, true)
      if at then
        local line = held:sub(from, at - 1)
        from = at + 1
        if not parts then return line end
        parts[#parts + 1] = line
        return table.concat(parts)
      end
      parts = parts or {}
      parts[#parts + 1] = held:sub(from)
      size = size + #held - from + 1
      if size > LONGEST_LINE then return false, "a line of more than 64 MiB" end
      held, from = file:read(BLOCK), 1
      if not held then
        held = ""
        local rest = table.concat(parts)
        return rest ~= "" and rest or nil
      end
    end
  end
end

-- rows(path, kind, each): calls each(row) for the rows of a JSONL file or JSON array, which returns true, or nil, message to stop.
-- Returns true, or nil, message, code.
function formats.rows(path, kind, each)
  if kind == "array" then
    local content, message, code = formats.read_all(path)
    if not content then return nil, message, code end
    local list
    list, message, code = json.decode(content, path)
    if list == nil then return nil, message, code end
    for i, row in ipairs(list) do
      local ok
      ok, message = each(row)
      if not ok then return nil, ("%s: row %d: %s"):format(path, i, message), "format" end
    end
    return true
  end
  local file, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  local number = 0
  for line, problem in each_line(file) do
    number = number + 1
    if not line then
      file:close()
      return nil, ("%s:%d: %s"):format(path, number, problem), "format"
    end
    if number == 1 then line = line:gsub("^\239\187\191", "") end
    if line:find "%S" then
      local where = ("%s:%d"):format(path, number)
      local row, wrong, code = json.decode(line, where)
      if row ~= nil then
        local ok
        ok, wrong = each(row)
        if not ok then wrong, code = where .. ": " .. wrong, "format" end
      end
      if wrong then
        file:close()
        return nil, wrong, code
      end
    end
  end
  file:close()
  return true
end

return formats
