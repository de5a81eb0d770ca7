-- Classifiers of sequences: opening a model as one for its data's labels, and measuring how often it is right.
local batch = require "onn.batch"
local core = require "onn.core.ops"
local data = require "onn.data"
local files = require "onn.files"
local formats = require "onn.data.formats"
local Model = require "onn.model"
local scope = require "onn.scope"
local system = require "onn.core.system"

local classifier = {}

-- {[name] = number} of a model's classes, or nil where it is no classifier of sequences.
function classifier.classes(model)
  local c = model.sizes
  if not c or not c.top or c.top.kind ~= "classes" then return nil end
  local classes = {}
  for id = 0, c.outputs - 1 do classes[c.labels and c.labels[id] or "LABEL_" .. id] = id end
  return classes
end

-- The labels that an adapter was trained for, or nil; or nil, message, code.
local function adapter_labels(directory)
  local path = directory and directory .. "/labels.json"
  if not path or not system.exists(path) then return nil end
  local list, message, code = files.read_json(path)
  if not list then return nil, message, code end
  for _, label in ipairs(type(list) == "table" and list or { false }) do
    if type(label) ~= "string" then return nil, path .. ": expected a list of names", "format" end
  end
  return list
end

-- As Model.open. An encoder without a classifier gets a new one: for the labels of opt.adapter (a directory), else for those that
-- `source` (a path or rows) has. opt: dtype, seed.
function classifier.open(path, source, opt)
  local model, message, code = Model.open(path, opt)
  if model and model.net and model.net.trains_on then
    local why = ("%s: a model of the family %s is trained on %s"):format(path, model.family, model.net.trains_on)
    model:close()
    return nil, why, "unsupported"
  end
  if not model or not model.sizes or not model.sizes.top or classifier.classes(model) then return model, message, code end
  local wants_masked = type(source) == "string" and formats.kind(source) == "safetensors"
  if wants_masked then return model end
  local labels
  labels, message, code = adapter_labels(opt.adapter)
  if not labels and not message then labels, message, code = formats.labels(source) end
  model:close()
  if not labels then return nil, message, code end
  if #labels < 2 then return nil, ("there is only one label, '%s': nothing can be told apart"):format(labels[1]), "format" end
  return Model.open(path, setmetatable({ classes = labels }, { __index = opt }))
end

-- Sum and count of what is right, and the sum of losses, over a set (see onn.data). order: batch, micro_batch, seq_len.
-- Returns {loss, accuracy, samples}.
function classifier.evaluate(model, set, order)
  local total, right, count = 0, 0, 0
  for update in data.batches(set, { batch = order.micro_batch, micro_batch = order.micro_batch, seq_len = order.seq_len, shuffle = false }) do
    for _, b in ipairs(update) do
      local carry = model:forward(model:carry(b), { training = false })
      scope(function()
        local labels = core.embedding(b.labels:to("f32"):view { b.tokens, 1 }, b.starts:narrow(1, 1, b.sequences), "f32")
        labels = labels:view { b.sequences }:to "i32"
        local nll = core.cross_entropy(carry.logits, labels, 1, false)
        total = core.running_sum(nll, total)
        local guess, want = core.reduce(carry.logits, "argmax"):totable(), labels:totable()
        for s = 1, #want do right = right + (guess[s] == want[s] and 1 or 0) end
        count = count + #want
      end)
      carry.logits:free()
      batch.free(b)
    end
  end
  return { loss = total / count, accuracy = right / count, samples = count }
end

return classifier
