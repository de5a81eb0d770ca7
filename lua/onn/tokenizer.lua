-- A model's tokenizer: tokenizer.json, with what tokenizer_config.json and chat_template.jinja say beside it.
local core = require "onn.core.tokenizer"
local files = require "onn.files"
local json = require "onn.core.json"
local system = require "onn.core.system"

local Tokenizer = {}
Tokenizer.__index = Tokenizer

-- ids(array or number or nothing): a new buffer of token ids. #ids, ids[i] from 1, :totable(), :append(more), :slice(i, j),
-- :concat(separator).
Tokenizer.ids = core.ids

-- A token is a string, or an object that holds it as `content`.
local function token_text(value)
  if type(value) == "table" then value = value.content end
  return type(value) == "string" and value or nil
end

-- One template, or a list of { name, template } of which "default" is meant.
local function template_text(value)
  if type(value) == "string" then return value end
  for _, entry in ipairs(type(value) == "table" and value or {}) do
    if type(entry) == "table" and entry.name == "default" and type(entry.template) == "string" then return entry.template end
  end
end

-- A file that need not be there: its text, false if there is none; or nil, message, code.
local function optional(path)
  if not system.exists(path) then return false end
  return system.read_file(path)
end

local function read_config(self, directory)
  local text, message, code = optional(directory .. "/tokenizer_config.json")
  if text == nil then return nil, message, code end
  local config = {}
  if text then
    config, message, code = json.decode(text, directory .. "/tokenizer_config.json")
    if config == nil then return nil, message, code end
    if type(config) ~= "table" then return nil, directory .. "/tokenizer_config.json: not an object", "format" end
  end
  for _, role in ipairs { "bos", "eos", "pad", "unk" } do
    local token = token_text(config[role .. "_token"])
    self[role .. "_token"] = token
    self[role .. "_id"] = token and self.core:id(token)
  end
  self.add_bos = config.add_bos_token == true
  text, message, code = optional(directory .. "/chat_template.jinja")
  if text == nil then return nil, message, code end
  self.chat_template = text or template_text(config.chat_template)
  return self
end

-- Opens a model directory, its tokenizer.json, or org/name from the hub cache; or nil, message, code.
-- Fields: path, name, size (ids are below), chat_template, and for bos, eos, pad and unk X_token and X_id where known.
function Tokenizer.open(model)
  local path, message, code = files.resolve(model)
  if not path then return nil, message, code end
  if path:find "%.safetensors$" then path = path:match "^(.*)/[^/]*$" or "." end
  local directory = path
  if system.isdir(path) then
    path = path .. "/tokenizer.json"
    if not system.exists(path) then return nil, ("%s: there is no tokenizer.json"):format(directory), "io" end
  else
    directory = path:match "^(.*)/[^/]*$" or "."
  end
  local text, loaded
  text, message, code = system.read_file(path)
  if not text then return nil, message, code end
  loaded, message, code = core.load(text, path)
  if not loaded then return nil, message, code end
  local self = setmetatable({ core = loaded, path = path, name = directory:match "([^/]+)$", size = loaded:size() }, Tokenizer)
  return read_config(self, directory)
end

-- encode(text, { special = true, bos = false }) -> ids. special: special tokens in the text are recognised, otherwise they are
-- text. bos: begins as the model's files ask for (with nothing, if they ask for nothing).
function Tokenizer:encode(text, options)
  local ids = self.core:encode(text, options)
  if options and options.bos and self.add_bos and self.bos_id and ids[1] ~= self.bos_id then
    return core.ids(self.bos_id):append(ids)
  end
  return ids
end

-- decode(ids or array or id, { skip_special = true }) -> text
function Tokenizer:decode(ids, options) return self.core:decode(ids, options) end

local Stream = {}
Stream.__index = Stream

-- The bytes of a piece that go beyond the prompt's text.
local function beyond(self, piece)
  local skipped = math.min(self.skip, #piece)
  self.skip = self.skip - skipped
  return piece:sub(skipped + 1)
end

-- push(id) -> text that is certain now, "" if none. What may still change waits: incomplete characters, runs of byte tokens.
function Stream:push(id) return beyond(self, self.core:push(id)) end
-- finish() -> the rest.
function Stream:finish() return beyond(self, self.core:finish()) end

-- stream(prompt ids or nil, { skip_special = true }): text id by id. Its pieces together are what decode() of prompt and ids
-- has beyond decode() of the prompt alone, so the first piece keeps its space.
function Tokenizer:stream(prompt, options)
  local stream = setmetatable({ core = self.core:stream(options), skip = 0 }, Stream)
  if prompt and #prompt > 0 then
    local certain = 0
    for i = 1, #prompt do certain = certain + #stream.core:push(prompt[i]) end
    local whole = self.core:decode(prompt, options)
    -- a character that the prompt leaves incomplete belongs to what follows
    stream.skip = (whole:sub(-3) == "\239\191\189" and certain or #whole) - certain
  end
  return stream
end

function Tokenizer:id(text) return self.core:id(text) end
-- token(id) -> its spelling in the file, whether it is special; nil if there is none
function Tokenizer:token(id) return self.core:token(id) end
-- prefix() -> ids that { bos = true } puts first by the template of tokenizer.json
function Tokenizer:prefix() return self.core:prefix() end
function Tokenizer:free() self.core:free() end

return Tokenizer
