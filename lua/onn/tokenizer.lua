-- A model's tokenizer: tokenizer.json, with what tokenizer_config.json and chat_template.jinja say beside it.
local core = require "onn.core.tokenizer"
local files = require "onn.files"
local json = require "onn.core.json"
local legacy = require "onn.legacy_tokenizer"
local system = require "onn.core.system"

local Tokenizer = {}
Tokenizer.__index = Tokenizer

local ROLES = { "bos", "eos", "pad", "unk", "cls", "sep", "mask" }

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

-- A JSON object beside the tokenizer that need not be there; or nil, message, code.
local function read_object(path)
  local text, message, code = optional(path)
  if text == nil then return nil, message, code end
  if not text then return {} end
  local value
  value, message, code = json.decode(text, path)
  if value == nil then return nil, message, code end
  if type(value) ~= "table" then return nil, path .. ": not an object", "format" end
  return value
end

-- names: the roles' tokens where tokenizer_config.json and special_tokens_map.json say nothing.
local function read_config(self, directory, config, names)
  local map, message, code = read_object(directory .. "/special_tokens_map.json")
  if not map then return nil, message, code end
  for _, role in ipairs(ROLES) do
    local key = role .. "_token"
    local token = token_text(config[key])
    if config[key] == nil then token = token_text(map[key]) or names[role] end
    self[key] = token
    self[role .. "_id"] = token and self.core:id(token)
  end
  self.add_bos = config.add_bos_token == true
  local text
  text, message, code = optional(directory .. "/chat_template.jinja")
  if text == nil then return nil, message, code end
  self.chat_template = text or template_text(config.chat_template)
  return self
end

-- The text of tokenizer.json, its path, its directory, what tokenizer_config.json holds, and the roles' tokens as far as older
-- files tell them; or nil, message, code.
local function read_text(model)
  local path, message, code = files.resolve(model)
  if not path then return nil, message, code end
  if path:find "%.safetensors$" then path = path:match "^(.*)/[^/]*$" or "." end
  local directory, whole = path, system.isdir(path)
  if whole then path = path .. "/tokenizer.json" else directory = path:match "^(.*)/[^/]*$" or "." end
  local config, text, names
  config, message, code = read_object(directory .. "/tokenizer_config.json")
  if not config then return nil, message, code end
  if not whole or system.exists(path) then
    text, message, code = system.read_file(path)
    names = {}
  else
    path = directory
    text, names, code = legacy.read(directory, config)
    message = names
  end
  if not text then return nil, message, code end
  return text, path, directory, config, names
end

-- Opens a model directory, its tokenizer.json, or org/name from the hub cache; or nil, message, code.
-- Fields: path, name, size (ids are below), chat_template, and for bos, eos, pad, unk, cls, sep and mask X_token and X_id where known.
function Tokenizer.open(model)
  local text, path, directory, config, names = read_text(model)
  if not text then return nil, path, directory end
  local loaded, message, code = core.load(text, path)
  if not loaded then return nil, message, code end
  local self = setmetatable({ core = loaded, path = path, name = directory:match "([^/]+)$", size = loaded:size() }, Tokenizer)
  return read_config(self, directory, config, names)
end

-- encode(text, { special = true, bos = false }) -> ids. special: special tokens in the text are recognised, otherwise they are
-- text. bos: begins as the model's files ask for (with nothing, if they ask for nothing), for text that goes on.
-- encode(text, { add_special_tokens = true, pair = text or nil }) -> ids, segments: a whole text, or two, with all special tokens
-- that the post_processor puts around them ([CLS] ... [SEP] ... [SEP]), and the token type of each id.
function Tokenizer:encode(text, options)
  local ids, segments = self.core:encode(text, options)
  if options and options.bos and self.add_bos and self.bos_id and ids[1] ~= self.bos_id then
    return core.ids(self.bos_id):append(ids)
  end
  return ids, segments
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
