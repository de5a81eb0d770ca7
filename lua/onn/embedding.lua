-- Embeddings of texts: one vector a text from the hidden states of its tokens, as the files of sentence-transformers say where they are
-- there (modules.json, 1_Pooling/config.json, sentence_bert_config.json).
local batches = require "onn.batch"
local core = require "onn.core.ops"
local files = require "onn.files"
local framed = require "onn.framed"
local scope = require "onn.scope"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local embedding = {}

local poolings = { pooling_mode_mean_tokens = "mean", pooling_mode_cls_token = "cls", pooling_mode_max_tokens = "max",
  pooling_mode_lasttoken = "last" }

-- The pooling that a 1_Pooling/config.json asks for, or nil and what of it cannot be done.
local function read_pooling(path)
  local config, message, code = files.read_json(path)
  if not config then return nil, message, code end
  local found
  for key, value in pairs(type(config) == "table" and config or {}) do
    if key:find "^pooling_mode_" and value == true then
      if found or not poolings[key] then return nil, ("%s: '%s' is not supported here"):format(path, key), "unsupported" end
      found = poolings[key]
    end
  end
  if type(config.pooling_mode) == "string" then found = config.pooling_mode end
  return found or "mean"
end

-- settings(directory): {pooling, normalize, longest} of a model directory; without sentence-transformers' files mean pooling, not
-- normalised. Returns nil, message, code for modules that are not known.
function embedding.settings(directory)
  local how = { pooling = "mean", normalize = false }
  if system.exists(directory .. "/sentence_bert_config.json") then
    local config, message, code = files.read_json(directory .. "/sentence_bert_config.json")
    if not config then return nil, message, code end
    how.longest = type(config) == "table" and tonumber(config.max_seq_length) or nil
  end
  local path = directory .. "/modules.json"
  if not system.exists(path) then return how end
  local modules, message, code = files.read_json(path)
  if not modules then return nil, message, code end
  for _, module in ipairs(type(modules) == "table" and modules or {}) do
    local kind = type(module) == "table" and type(module.type) == "string" and module.type:match "[^.]+$" or "?"
    if kind == "Pooling" then
      local config = ("%s/%s/config.json"):format(directory, tostring(module.path))
      if system.exists(config) then
        how.pooling, message, code = read_pooling(config)
        if not how.pooling then return nil, message, code end
      end
    elseif kind == "Normalize" then
      how.normalize = true
    elseif kind ~= "Transformer" then
      return nil, ("%s: a module '%s' is not supported"):format(path, kind), "unsupported"
    end
  end
  return how
end

-- One sequence's vector from its hidden states (tokens, width), f32.
local function pooled(hidden, pooling)
  local tokens = hidden:size(1)
  if pooling == "cls" then return hidden:narrow(1, 1, 1) end
  if pooling == "last" then return hidden:narrow(1, tokens, 1) end
  return core.reduce(hidden:transpose(1, 2):contiguous(), pooling):view { 1, hidden:size(2) }
end

-- embed(model, texts, opt): a tensor f32 (texts, width) of a loaded model. texts: texts for opt.tokenizer, or lists of ids. opt:
-- pooling ("mean", "cls", "max", "last"), normalize, longest (tokens of a text), batch (tokens that go through together; 4096).
function embedding.embed(model, texts, opt)
  local width, most = model.sizes.width, math.min(opt.longest or math.huge, model.sizes.positions)
  local out, at = tensors.new("f32", { #texts, width }), 1
  while at <= #texts do
    local ids, positions, starts, numbers, first, longest = {}, {}, { 0 }, {}, at, 0
    repeat
      local one = texts[at]
      if type(one) == "string" then one = framed.ids(opt.tokenizer, one, most) end
      if #one == 0 then error(("text %d has no tokens"):format(at), 0) end
      for t, id in ipairs(one) do ids[#ids + 1], positions[#positions + 1], numbers[#numbers + 1] = id, t - 1, #ids end
      starts[#starts + 1], longest, at = #ids, math.max(longest, #one), at + 1
    until at > #texts or #ids >= (opt.batch or 4096)
    local b = { ids = tensors.from_table(ids, "i32"), positions = tensors.from_table(positions, "i32"),
      starts = tensors.from_table(starts, "i32"), rows = tensors.from_table(numbers, "i64"), longest = longest, tokens = #ids }
    local carry = model:forward(model:carry(b), { training = false, keep_hidden = true, body_only = true })
    scope(function()
      for s = 1, #starts - 1 do
        local v = pooled(carry.last_hidden:narrow(1, starts[s] + 1, starts[s + 1] - starts[s]):to "f32", opt.pooling or "mean")
        if opt.normalize then
          local norm = math.sqrt((core.total(v:contiguous():view { width }, true)))
          v = core.affine(v:contiguous(), 1 / math.max(norm, 1e-12), 0)
        end
        out:narrow(1, first + s - 1, 1):copy(v)
      end
    end)
    carry.last_hidden:free()
    if carry.logits then carry.logits:free() end
    batches.free(b)
  end
  return out
end

return embedding
