-- Nets that classify images, made of convolutions or of rows of patches. A family (arch/families, net = "convolutional") builds its stages
-- with onn.arch.image_stages; onn.arch.image_layers runs their nodes. The first carry holds x f32 (n, c, h, w), later ones hidden; the last
-- stage's logits are (n, classes).
local copied = require "onn.arch.copied"
local builder = require "onn.arch.image_stages"
local core = require "onn.core.ops"
local layers = require "onn.arch.image_layers"
local ops = require "onn.ops"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local convolutional = { data = "images", dtype = "f32", continues = false }

local SIZE = values.integer(1, 2 ^ 20)

-- A list whose elements are all of one type.
local function list_of(kind)
  return { text = "a list of " .. kind .. "s", check = function(v)
    if type(v) ~= "table" or #v == 0 then return false end
    for _, one in ipairs(v) do if type(one) ~= kind then return false end end
    return true
  end }
end

-- What a config may say; labels, image_mean and image_std are onn.data.images'.
local keys = { { "width", SIZE }, { "num_classes", SIZE }, { "num_labels", SIZE }, { "num_channels", SIZE }, { "dropout", values.number },
  { "image_size", values.integer(1, 2 ^ 14) }, { "labels", list_of "string" }, { "image_mean", list_of "number" },
  { "image_std", list_of "number" } }

-- Channels of the images: the first weight says it, the config of a new net, or they are 3.
local function image_channels(family, config, store)
  local info = store and family.first and store:info(family.first .. ".weight")
  return info and #info.shape == 4 and info.shape[2] or config.num_channels or 3
end

-- sizes: {layers (blocks), width (features that the classes are made of), classes, channels, image_size, built (the stages)}; or nil
-- and a list of what is wrong. Without a store the net is new.
function convolutional.describe(config, family, store)
  local wrong = {}
  for _, one in ipairs(keys) do
    if config[one[1]] ~= nil then values.check(one[1], config[one[1]], one[2], wrong) end
  end
  if config.dropout ~= nil and #wrong == 0 and (config.dropout < 0 or config.dropout >= 1) then
    wrong[1] = "'dropout' should lie in [0, 1), found " .. values.shown(config.dropout)
  end
  if #wrong == 0 and family.check then family.check(config, wrong) end
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  local channels = image_channels(family, config, store)
  local b = builder.new(store, channels)
  b.classes, b.drop = config.num_classes or config.num_labels or 1000, config.dropout or 0
  family.stages(b, config, config.model_type or config.architecture)
  if #b.wrong > 0 then return nil, b.wrong end
  for _, key in ipairs { "num_classes", "num_labels" } do
    if config[key] and config[key] ~= b.channels then
      return nil, { ("config.json: '%s' is %d, the store's last layer gives %d classes"):format(key, config[key], b.channels) }
    end
  end
  local last = b.stages[#b.stages].layers
  return { layers = b.blocks, width = last[#last].into, classes = b.channels, channels = channels,
    image_size = config.image_size or family.image_size and family.image_size(config),
    built = b.stages, family = family.name }
end

function convolutional.stages(sizes) return sizes.built end

-- What other uses of the same body read.
function convolutional.ignorable(name) return name:find "%.embeddings%.mask_token$" or name:find "^%a%w+%.pooler%.dense%." end

-- Convolutions keep the size of what they give back (arXiv 1502.01852), products that of their input; norms are 1 and 0, statistics new.
function convolutional.first_value(_, t, seed)
  if t.fill then return tensors.new(t.dtype or "f32", t.shape):fill(t.fill) end
  return core.normal(tensors.new("f32", t.shape), seed, "init/" .. t.name, 0, t.deviation)
end

-- Batch norms of the trained stages (`wanted`: {[position] = true}, nil: all) take their batch's statistics while training.
function convolutional.train_mode(model, wanted)
  for i, stage in ipairs(model.stages) do stage.batch_statistics = not wanted or wanted[i] or false end
end

-- The tensors of running statistics that training moves: {name, value, gradients = {}}, as an optimizer's parameters are listed.
function convolutional.state(model)
  local list = {}
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.batch_statistics and stage.tensors or {}) do
      if t.state then list[#list + 1] = { name = t.name, value = stage.weights[t.role], gradients = {} } end
    end
  end
  return list
end

-- batch: {x f32 (n, c, h, w), starts: each image by itself, for sums that do not depend on how a batch is cut (nil: in tiles of rows)}
function convolutional.start(_, batch) return { x = batch.x, starts = batch.starts } end

-- What a batch of `rows` images of model.pictures, {height, width}, looks like to a dry run.
function convolutional.example(model, rows)
  local starts = {}
  for i = 0, rows do starts[i + 1] = i end
  return { x = tensors.new("f32", { rows, model.sizes.channels, unpack(model.pictures) }), labels = tensors.new("i32", { rows }),
    rows = tensors.new("i64", { rows }), starts = tensors.from_table(starts, "i32"), tokens = rows, supervised = rows }
end

-- With ctx.labels the last stage gives carry.nll (n), else carry.logits (n, classes).
function convolutional.forward(_, stage, carry, ctx)
  local out = copied(carry)
  local y = layers.run(stage.nodes, carry.hidden or carry.x, stage, ctx)
  if stage.kind ~= "classifier" then
    out.hidden = y
  elseif ctx.labels then
    out.nll = ops.class_loss(y, ctx.labels, ctx.loss_scale)
  else
    out.logits = y
  end
  return out
end

return convolutional
