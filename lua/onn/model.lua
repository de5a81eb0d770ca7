-- A model: a chain of stages whose weights come from a store. Opening reads headers only; load() brings the weights.
local alibi = require "onn.nn.alibi"
local arch = require "onn.arch"
local core = require "onn.core.tensor"
local files = require "onn.files"
local missing = require "onn.missing"
local numbers = require "onn.core.ops"
local query_scales = require "onn.nn.query_scales"
local rope = require "onn.nn.rope"
local sinusoids = require "onn.nn.sinusoids"
local scope = require "onn.scope"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local trace = require "onn.trace"

local Model = {}
Model.__index = Model

-- The arithmetic's dtype: "auto" keeps f32 for f32 checkpoints and takes bf16 for 16-bit ones where the processor has it.
local function choose_dtype(wanted, store)
  if wanted and wanted ~= "auto" then return wanted end
  local bytes = {}
  for _, name in ipairs(store:names()) do
    local entry = store:info(name)
    bytes[entry.dtype] = (bytes[entry.dtype] or 0) + entry.bytes
  end
  local _, native = core.backend()
  return native and (bytes.BF16 or 0) + (bytes.F16 or 0) > (bytes.F32 or 0) and "bf16" or "f32"
end

-- Fills in what a description (of onn.arch) says, in an arithmetic's dtype; self.store has the tensors' headers.
local function follow(self, described, dtype)
  self.family, self.sizes, self.stages = described.family.name, described.sizes, described.stages
  self.net, self.run, self.dtype = described.net, described.net.forward, dtype
  local c = self.sizes
  self.angles = c.rope and rope.new(c.rope, c.interleaved, c.rope_backwards)
  self.local_angles = c.rope_of_windows and rope.new(c.rope_of_windows, c.interleaved)
  self.slopes = c.alibi and alibi.new(c.heads, c.slope_scale)
  self.sinusoids = c.sinusoids and sinusoids.new(c.sinusoids, c.width)
  self.query_scales = c.query_scale and query_scales.new(c.query_scale)
  return self
end

-- A model of which there is no more than a description and a store's headers, for plans; {info = function(store, name)}.
function Model.described(described, dtype, store) return follow(setmetatable({ store = store }, Model), described, dtype) end

-- A weight stored (in, out) as the products take it.
local function transposed(w)
  local view = w:transpose(1, 2)
  w:free()
  return view
end

-- A config as it is for a classifier of these labels; what it calls its own, in the same order, stays.
local function with_classes(config, labels)
  local changed, names, ids = {}, {}, {}
  for k, v in pairs(config) do changed[k] = v end
  for i, label in ipairs(labels) do names[tostring(i - 1)], ids[label] = label, i - 1 end
  local family = arch.families()[config.model_type]
  changed.architectures = { (family and family.class or "") .. "ForSequenceClassification" }
  changed.id2label, changed.label2id, changed.num_labels = names, ids, nil
  return changed
end

-- Opens a model directory or .safetensors file beside its config.json. opt: dtype, config (a table instead of config.json), family and
-- set ({key = JSON text}): what config.json lacks, or says otherwise (onn.arch.infer); classes (a list of labels: a classifier of
-- sequences of these, made anew where the checkpoint has none), seed (of what is made anew).
-- Returns the model (weights not loaded), or nil, message, code. `model.missing` lists what stands in the way of running it.
function Model.open(path, opt)
  opt = opt or {}
  local found, message, code = files.resolve(path)
  if not found then return nil, message, code end
  if found:find "%.lua$" then return Model.open_definition(found, opt) end
  local store
  store, message, code = stores.open(found)
  if not store then return nil, message, code end
  local directory = found:match "%.safetensors$" and (found:match "^(.*)/[^/]*$" or ".") or found
  local self = setmetatable({ path = found, directory = directory, store = store, missing = {}, resident = false }, Model)
  local config = opt.config
  if not config then
    config, message, code = files.read_json(directory .. "/config.json")
    if not config then
      if code ~= "io" then store:close() return nil, message, code end
      if not opt.family then
        self.missing = { "config.json (" .. message .. "); --family NAME does without" }
        return self
      end
      self.stand_in = true
    end
  end
  if opt.family or opt.set then
    config, message, code = require("onn.arch.infer").config(config, opt, store)
    if not config then store:close() return nil, message, code end
  end
  if opt.classes then config = with_classes(config, opt.classes) end
  self.config = type(config) == "table" and arch.clean(config) or {}
  local described, wrong = arch.describe(config, store)
  if not described then
    self.missing = self.stand_in and require("onn.arch.infer").asked_for(wrong) or wrong
    return self
  end
  self.missing, self.seed, self.classes = arch.check(described, store, opt.classes ~= nil), opt.seed or 0, opt.classes
  local only = described.net.dtype
  if only and opt.dtype and opt.dtype ~= "auto" and opt.dtype ~= only then
    table.insert(self.missing, ("%s is computed in %s alone, not in %s"):format(described.family.name, only, opt.dtype))
  end
  return follow(self, described, only or choose_dtype(opt.dtype, store))
end

-- Opens a Lua file that defines a model (onn.nn), with the weights of the .safetensors file beside it that has its name, or with new
-- ones (`unwritten`). The file is run: it is the user's own. Returns the model, or nil, message, code.
function Model.open_definition(path, opt)
  local definition = require "onn.nn.definition"
  local described, message, code = definition.open(path)
  if not described then return nil, message, code end
  local beside, store = path:gsub("%.lua$", ".safetensors"), nil
  local written = system.exists(beside)
  if written then
    store, message, code = stores.open(beside)
    if not store then return nil, message, code end
  end
  local self = setmetatable({ path = path, directory = path:match "^(.*)/[^/]*$" or ".", store = store or definition.no_store,
    unwritten = not written, resident = false, config = {}, seed = opt.seed or 0 }, Model)
  self.missing = arch.check(described, self.store, not written)
  return follow(self, described, described.net.dtype)
end

-- Reads a tensor of a stage in `dtype` (nil: as it is stored), or makes it: as its net begins, else matrices normal with deviation
-- t.fresh and biases 0.
function Model:read(t, dtype)
  if not t.made then return self.store:read(t.name, dtype) end
  if self.net.first_value then return self.net.first_value(self.sizes, t, self.seed) end
  local value = core.zeros(dtype or "f32", t.shape)
  if #t.shape > 1 then numbers.normal(value, self.seed, t.name, 0, t.fresh) end
  return value
end

-- Brings one stage's weights to the device. Vectors are f32; matrices stay as stored in f32 arithmetic and are bf16 in bf16's.
function Model:load_stage(stage)
  local weights = {}
  for _, t in ipairs(stage.tensors) do
    local dtype = t.dtype or t.vector and "f32" or (self.dtype == "bf16" and "bf16" or nil)
    local w, message, code = self:read(t, dtype)
    if not w then return nil, message, code end
    weights[t.role] = core.keep(t.transposed and transposed(w) or w)
  end
  for _, layer in ipairs(stage.layers) do
    layer.weight, layer.bias = weights[layer.role], weights[layer.role .. "_bias"]
    weights[layer.role] = layer
  end
  for role, name in pairs(stage.shares or {}) do
    for _, other in ipairs(self.stages) do
      if other.weights and other.weights.embed and other.name .. ".weight" == name then
        weights[role] = core.keep(other.weights.embed:view(other.weights.embed:shape()))
      end
    end
  end
  stage.weights = weights
  return true
end

-- Brings all weights to memory, or with opt.ring ({slots, chunk, tile, prefetch, direct}) opens the ring that they will pass through.
-- opt.progress(done, total) is called after each stage. Returns true, or nil, message, code.
function Model:load(opt)
  opt = opt or {}
  if self.resident or self.ring then return true end
  if #self.missing > 0 then return nil, self:why_not(), "format" end
  local message, code
  if opt.ring then
    self.ring, message, code = require("onn.ring").open(self, opt.ring)
    self.loaded_as = opt.ring
    return self.ring and true or nil, message, code
  end
  for i, stage in ipairs(self.stages) do
    local ok
    ok, message, code = self:load_stage(stage)
    if not ok then return nil, message, code end
    if opt.progress then opt.progress(i, #self.stages) end
  end
  self.resident = true
  return true
end

-- One line that says what is missing to run this model.
function Model:why_not() return ("%s cannot be run: %s"):format(self.path, missing(self.missing)) end

-- One line where some of the weights would be new ones, which nobody has trained, else nil.
function Model:untrained()
  if self.unwritten then return ("%s has no weights beside it: train it first"):format(self.path) end
  for _, stage in ipairs(self.stages) do
    for _, t in ipairs(stage.tensors) do
      if t.made then return ("%s has no '%s': train it, or give the --adapter that holds it"):format(self.path, t.name) end
    end
  end
end

-- One line where the model's batches hold something other than `kind` ("tokens" or "images"), else nil.
function Model:unfit(kind)
  local data = self.net.data or "tokens"
  return data ~= kind and ("%s takes %s, not %s"):format(self.path, data, kind) or nil
end

function Model:parameters()
  local total = 0
  local function add(shape)
    local n = 1
    for _, size in ipairs(shape) do n = n * size end
    total = total + n
  end
  for _, name in ipairs(self.store:names()) do add(self.store:info(name).shape) end
  for _, stage in ipairs(self.unwritten and self.stages or {}) do for _, t in ipairs(stage.tensors) do add(t.shape) end end
  return total
end

-- The first carry of a batch (see onn.batch).
function Model:carry(batch) return self.net.start(self, batch) end

-- Runs f while stage i's weights are in memory.
function Model:visit(i, f)
  if self.ring then return self.ring:hold(i, f) end
  f()
end

-- Runs the last stage for all items, each by way of around(item, step): three steps where its weight comes in row tiles, else one.
-- A step is a function of a carry that gives the next carry; parts of the weight are used outside of `around`. Then done(item) hears of each,
-- in order, while the weights of a stage that is no "head" are there still.
function Model:run_head(items, around, done)
  local function finished()
    for _, item in ipairs(done and items or {}) do done(item) end
  end
  local i, sizes = #self.stages, self.sizes
  local stage, steps = self.stages[i], self.net.head
  if not self.ring or stage.kind ~= "head" then
    return self:visit(i, function()
      for _, item in ipairs(items) do around(item, function(carry) return self.run(sizes, stage, carry, item.ctx) end) end
      finished()
    end)
  end
  for _, item in ipairs(items) do around(item, function(carry) return steps.begin(sizes, stage, carry, item.ctx) end) end
  self.ring:tiles(i, function(weight, first)
    for _, item in ipairs(items) do steps.part(sizes, item.carry, item.ctx, weight, first) end
  end)
  for _, item in ipairs(items) do around(item, function(carry) return steps.finish(sizes, carry, item.ctx) end) end
  finished()
end

-- Of the largest item; nil for items that are not of tokens.
local function most_tokens(items)
  local most = 0
  for _, item in ipairs(items) do most = item.carry.ids and most and math.max(most, item.carry.ids:size(1)) end
  return most
end

-- Runs every stage without gradients for all items {carry, ctx}, stage by stage; each item's carry becomes the last one.
-- Intermediates are freed as it goes.
function Model:forward_all(items)
  local last = #self.stages
  if self.ring then
    local visits, tokens = {}, most_tokens(items)
    for i = 1, last do visits[i] = { at = i, times = #items, tokens = tokens, forward = true } end
    self.ring:schedule(visits)
  end
  local function around(item, step)
    local before = item.carry
    item.carry = scope(step, before)
    if before.hidden and before.hidden ~= item.carry.hidden then before.hidden:free() end
  end
  for _, item in ipairs(items) do item.ctx.dtype = self.dtype end
  for i, stage in ipairs(self.stages) do
    local began = trace.now()
    if i == last then
      self:run_head(items, around)
    else
      self:visit(i, function()
        for _, item in ipairs(items) do around(item, function(carry) return self.run(self.sizes, stage, carry, item.ctx) end) end
      end)
    end
    trace.span(stage.name, items[1].ctx.decode and "decode" or "forward", began)
  end
  for _, item in ipairs(items) do item.carry.hidden:free() end
end

-- The same for one carry, which is returned.
function Model:forward(carry, ctx)
  local item = { carry = carry, ctx = ctx }
  self:forward_all { item }
  return item.carry
end

-- Linear layers that an adapter may sit on: {name, out, into, role, stage}.
function Model:linear_layers()
  local list = {}
  for _, stage in ipairs(self.stages) do
    for _, layer in ipairs(stage.layers) do list[#list + 1] = { layer = layer, stage = stage } end
  end
  return list
end

-- Bytes of weights that have been read from the store since load().
function Model:streamed() return self.ring and self.ring:stats().bytes or 0 end

local function free_weights(stage)
  for role, w in pairs(stage.weights) do
    if core.is_tensor(w) then w:free() elseif role ~= "head" and role ~= "embed" then
      if core.is_tensor(w.weight) then w.weight:free() end
      if w.bias then w.bias:free() end
      w.weight, w.bias = nil, nil
    end
  end
  stage.weights = nil
end

-- Frees the weights, or closes the ring that they pass through; adapters stay. The store is open still: load() can follow.
function Model:unload()
  for _, stage in ipairs(self.stages or {}) do if stage.weights then free_weights(stage) end end
  if self.ring then self.ring:close() end
  self.resident, self.ring, self.loaded_as = false, nil, nil
end

-- Two ways of loading: do they put the same weights in the same places?
local function alike(a, b)
  if not a or not b then return a == b end
  for _, key in ipairs { "slots", "chunk", "tile", "prefetch", "direct" } do if a[key] ~= b[key] then return false end end
  return true
end

-- Loads the model as a plan says (its `ring`, or nil: all in memory), unloading it first where it is loaded in another way.
-- Returns true, or nil, message, code.
function Model:load_by(ring, progress)
  if (self.resident or self.ring) and not alike(self.loaded_as, ring) then self:unload() end
  return self:load { ring = ring, progress = progress }
end

function Model:close()
  self:unload()
  for _, name in ipairs { "angles", "local_angles", "slopes", "query_scales", "sinusoids", "biases", "encoder_bias", "decoder_bias" } do
    if self[name] then self[name]:free() end
  end
  self.store:close()
end

return Model
