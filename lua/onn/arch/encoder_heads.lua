-- What sits on an encoder: a masked-language head over the vocabulary, classes of whole sequences or of tokens, or nothing. A family
-- names the tensors of each (its `heads`); a config's `architectures` say which one a checkpoint has, else its tensors do.
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local parts = require "onn.arch.parts.stage"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"
local vocabulary_head = require "onn.arch.vocabulary_head"

local heads = {}

-- architectures' ends -> the family's heads that they mean, the first one that it has.
local ends = {
  { "ForMaskedLM$", "masked" }, { "ForPreTraining$", "pretraining", "masked" }, { "ForSequenceClassification$", "classes" },
  { "ForImageClassification$", "classes" }, { "ForTokenClassification$", "tokens" }, { "ForQuestionAnswering$", "spans" },
  { "Model$", "body" }, { "Encoder$", "body" },
}

-- Tensors of heads other than the one that a model runs with, and buffers: nothing reads them.
local unread = { "position_ids$", "token_type_ids$", "^cls%.", "^lm_head%.", "pooler%.", "^classifier%.", "^pre_classifier%.", "^qa_outputs%.",
  "^vocab_%a+%.", "^generator_%a+%.", "^discriminator_%a+%.", "^predictions%." }

function heads.ignorable(name)
  for _, pattern in ipairs(unread) do if name:find(pattern) then return true end end
  return false
end

-- The name of the config's first architecture, or nil.
local function architecture(config)
  local list = config.architectures
  return type(list) == "table" and type(list[1]) == "string" and list[1] or nil
end

-- What the names of the body's tensors begin with: a checkpoint of the body alone has no prefix.
function heads.prefix(config, family, has)
  if not family.body then return "" end
  local prefix = family.body .. "."
  if has then return has(prefix .. family.probe) and prefix or has(family.probe) and "" or prefix end
  return (architecture(config) or ""):find "Model$" and "" or prefix
end

-- Which head: a key of family.heads or "body"; nil and what is wrong.
local function choose(config, family, has)
  local name = architecture(config)
  if not name then
    for _, kind in ipairs { "masked", "classes" } do
      local spec = family.heads[kind]
      if type(spec) == "function" then spec = spec(config) end
      local probe = spec and (kind == "masked" and spec.norm or spec.out)
      if has and probe and (has(probe .. ".weight") or has(probe .. ".gamma")) then return kind end
    end
    return "body"
  end
  for _, entry in ipairs(ends) do
    if name:find(entry[1]) then
      for k = 2, #entry do if entry[k] == "body" or family.heads[entry[k]] then return entry[k] end end
    end
  end
  return nil, ("'architectures' names %s, which is not known for %s"):format(values.shown(name), family.name)
end

-- The number of classes and, where the config has them, their names {[0] = name}.
local function classes(config, wrong)
  local named, count = {}, 0
  if type(config.id2label) == "table" then
    for id, label in pairs(config.id2label) do
      local number = tonumber(id)
      if type(label) ~= "string" or not number then
        wrong[#wrong + 1] = "'id2label' should map numbers to names"
        return nil
      end
      named[number], count = label, count + 1
    end
    for id = 0, count - 1 do
      if not named[id] then
        wrong[#wrong + 1] = ("'id2label' has %d names and none for %d"):format(count, id)
        return nil
      end
    end
  end
  local given = config.num_labels or (count > 0 and count or 2)
  values.check("num_labels", given, values.integer(1, 2 ^ 20), wrong)
  return given, count > 0 and named or nil
end

-- Fills in c.top {kind, activation and names of its tensors}, c.outputs (numbers that logits have for a row), c.labels.
function heads.read(config, family, has, c, prefix, wrong)
  local kind, message = choose(config, family, has)
  if not kind then
    wrong[#wrong + 1] = message
    return
  end
  local spec, top = family.heads[kind] or {}, { kind = kind }
  for key, value in pairs(type(spec) == "function" and spec(config) or spec) do top[key] = value end
  if top.inside then top.dense = prefix .. top.dense end
  if top.activation then
    top.activation = top.activation == "config" and c.activation or parts.activations[top.activation]
  end
  if kind == "classes" and top.pooling and top.pooling ~= "cls" then
    wrong[#wrong + 1] = ("'classifier_pooling' is %s, only 'cls' can be run"):format(values.shown(top.pooling))
  end
  c.top, c.tied = top, kind == "masked" and c.tied ~= false
  if kind == "masked" then
    c.outputs, c.names.head, c.top_width = c.vocabulary, top.decoder, c.top_width or c.embed_width
    top.bias_name = top.bias and top.bias[1]
    for _, name in ipairs(top.bias or {}) do -- the last one that is there is the one that is read
      if has and has(name) then top.bias_name = name end
    end
  elseif kind ~= "body" then
    if top.outputs then c.outputs = top.outputs else c.outputs, c.labels = classes(config, wrong) end
  end
  c.saves = top.save
end

-- Adds the stages of the model's head to `stages`. Those of classes are small: they stay in memory, in f32, and are trained with an
-- adapter; where the checkpoint has none they are made anew (`fresh`: the deviation of their first values).
function heads.stages(c, has, stages)
  local top, kind = c.top, c.top.kind
  if kind == "masked" then
    local stage, add = parts.stage(top.dense, "transform", has)
    add.product(top.dense, "dense", c.top_width, c.width, top.dense_bias)
    add.norm(top.norm, "norm", c.top_width, c.norm_bias)
    stages[#stages + 1] = stage
    stage, add = parts.stage(top.decoder, "head", has)
    if c.tied then
      stage.shares = { head = c.names.embed .. ".weight" }
    else
      add.tensor(top.decoder .. ".weight", "head", { c.vocabulary, c.top_width })
    end
    if top.bias_name then add.tensor(top.bias_name, "head_bias", { c.vocabulary }) end
    stages[#stages + 1] = stage
    return
  end
  local stage, add = parts.stage(top.out or "output", kind == "body" and "body" or kind == "classes" and "classes" or "tokens", has)
  local small = { vector = true, fresh = c.deviation, saved = true }
  if top.dense then add.product(top.dense, "dense", c.width, c.width, top.dense_bias, small) end
  if top.norm then add.norm(top.norm, "norm", c.width, c.norm_bias, small) end
  if top.out then add.product(top.out, "out", c.outputs, c.width, true, small) end
  stages[#stages + 1] = stage
end

local forward = {}
heads.forward = forward

-- Keeps the body's output for whoever asks for it.
local function body_output(carry, ctx)
  if ctx.keep_hidden then carry.last_hidden = carry.hidden:clone() end
end

function forward.transform(c, stage, carry, ctx)
  body_output(carry, ctx)
  if ctx.body_only then return carry end
  local x = linear(stage.weights.dense, parts.cast(carry.hidden, ctx), ctx, "f32")
  carry.hidden = parts.norm(c, stage, ops[c.top.activation or c.activation](x), "norm")
  return carry
end

function forward.body(_, _, carry, ctx)
  body_output(carry, ctx)
  return carry
end

-- logits of rows of the body's output; nll of them where labels are.
local function classify(c, stage, x, labels, carry, ctx)
  if ctx.body_only then return carry end
  if stage.weights.dense then x = ops[c.top.activation](linear(stage.weights.dense, x, ctx, stage.weights.norm and "f32")) end
  if stage.weights.norm then x = parts.cast(parts.norm(c, stage, x, "norm"), ctx) end
  local logits = linear(stage.weights.out, x, ctx, "f32")
  if labels then carry.nll = ops.class_loss(logits, labels, ctx.loss_scale) else carry.logits = logits end
  return carry
end

-- Elements of an i32 vector by their numbers.
local function picked(vector, ids)
  if tensors.is_dry() then return tensors.new("i32", ids:shape()) end
  local from, list = vector:totable(), {}
  for k, id in ipairs(ids:totable()) do list[k] = from[id + 1] end
  return tensors.from_table(list, "i32")
end

-- One row of logits for each sequence, from its first token.
function forward.classes(c, stage, carry, ctx)
  body_output(carry, ctx)
  local count = carry.starts:size(1) - 1
  local first, own = carry.starts:narrow(1, 1, count), {}
  for s = 0, count do own[s + 1] = s end
  return tape.with_starts(tensors.from_table(own, "i32"), function()
    local labels = ctx.labels and picked(ctx.labels, first)
    return classify(c, stage, parts.cast(ops.gather(carry.hidden, first), ctx), labels, carry, ctx)
  end)
end

function forward.tokens(c, stage, carry, ctx)
  body_output(carry, ctx)
  return classify(c, stage, parts.cast(carry.hidden, ctx), ctx.labels, carry, ctx)
end

forward.head, heads.head = vocabulary_head.new {
  input = function(_, _, carry, ctx) return not ctx.body_only and parts.cast(carry.hidden, ctx) or nil end,
  form = function(_, stage) return stage.weights.head_bias, 1 end,
  starts = function(carry) return carry.starts end,
}

return heads
