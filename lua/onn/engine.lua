-- onn.engine: a model that configures itself, for scripts.
--   local engine = Engine.open("models/phi-4"); engine:train({ { input = "Hello", output = "World" } }, { epochs = 1 })
--   print(engine:generate("Once upon a time", { max_tokens = 50 })); engine:close()
local batch = require "onn.batch"
local chat = require "onn.chat"
local data = require "onn.data"
local generator = require "onn.generator"
local layers = require "onn.layers"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local nearest = require "onn.nearest"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local Session = require "onn.session"
local settings = require "onn.settings"
local stop = require "onn.stop"
local Tokenizer = require "onn.tokenizer"
local units = require "onn.units"

local Engine = {}
Engine.__index = Engine

local known = { "config", "memory", "ram", "threads", "device", "dtype", "adapter", "seed" }

-- Opens a model directory and loads its weights; options: config, memory ("4GB"), ram, threads, device, dtype, adapter, seed.
-- Raises with one clear line when it cannot.
function Engine.open(path, options)
  options = options or {}
  nearest.check(options, known, "Engine.open")
  local opt = { _given = {}, device = "auto", dtype = "auto", seed = 0 }
  for k, v in pairs(options) do opt[k], opt._given[k] = v, true end
  for _, key in ipairs { "memory", "ram" } do
    if type(opt[key]) == "string" then opt[key] = assert(units.parse_bytes(opt[key])) end
  end
  settings.apply(opt, path)
  local machine = runtime.apply(opt)
  local model = assert(Model.open(path, { dtype = opt.dtype }))
  if #model.missing > 0 then error(model:why_not(), 2) end
  local self = setmetatable({ model = model, machine = machine, opt = opt }, Engine)
  self.tokenizer = Tokenizer.open(model.directory)
  assert(model:load())
  if opt.adapter then self.adapter = assert(lora.load(model, opt.adapter)) end
  return self
end

local function text_tokenizer(self)
  return self.tokenizer or error(self.model.directory .. ": no usable tokenizer.json", 3)
end

-- rows: a file name, or a table of examples ({input, output}, {prompt, completion}, {text}, {messages}); options: training's.
-- Returns {steps, loss_first, loss_last, losses}.
function Engine:train(rows, options)
  local found = self.opt -- settings from universal_config.json among them
  local opt = { batch = found.batch or 8, seq_len = found.seq_len or 512, epochs = 1, recompute = "auto", shuffle = true,
    seed = found.seed, layers = found.layers }
  for k, v in pairs(options or {}) do opt[k] = v end
  if opt.batch == found.batch and opt.seq_len == found.seq_len then -- found for these alone
    opt.micro_batch, opt.recompute = opt.micro_batch or found.micro_batch, found.recompute or opt.recompute
  end
  opt.seq_len = math.min(opt.seq_len, self.model.sizes.positions)
  opt.rank = opt.rank or Session.defaults.rank
  if type(opt.layers) == "string" then
    local set, wrong = layers.parse(opt.layers, self.model, opt)
    if set == false then error(wrong, 2) end
    opt.layers = set
  end
  opt.budget = self.machine.budget
  local set = assert(data.open(rows, text_tokenizer(self), opt))
  local plans = plan.training(self.model, opt)
  local order = { batch = opt.batch, micro_batch = plans.micro_batch, seq_len = opt.seq_len, pack = opt.pack, shuffle = opt.shuffle,
    seed = opt.seed, epoch = 0, cursor = 0 }
  opt.total_steps, opt.recompute = opt.steps or data.updates(set, order) * opt.epochs, plans.recompute
  self.session = assert(Session.new(self.model, opt))
  self.adapter = self.session.adapter
  local losses = {}
  while self.session.step < opt.total_steps do
    for update in data.batches(set, order) do
      local result = self.session:update(update, order.epoch)
      for _, b in ipairs(update) do batch.free(b) end
      losses[#losses + 1] = result.loss
      if opt.on_step then opt.on_step(result) end
      if self.session.step >= opt.total_steps then break end
    end
    order.epoch = order.epoch + 1
  end
  return { steps = self.session.step, loss_first = losses[1], loss_last = losses[#losses], losses = losses }
end

-- An iterator over pieces of text as they are generated; options: see onn.sampler, max_tokens, chat.
function Engine:stream(prompt, options)
  return coroutine.wrap(function() self:generate(prompt, options, coroutine.yield) end)
end

-- Returns the generated text. prompt: text, or with options.chat a text or list of messages. emit(piece) hears it as it comes.
function Engine:generate(prompt, options, emit)
  options = options or {}
  local tokenizer = text_tokenizer(self)
  if options.chat then
    local messages = type(prompt) == "table" and prompt or { { role = "user", content = prompt } }
    prompt = assert(chat.render(assert(chat.template(tokenizer)), tokenizer, messages, true))
  end
  local ids = tokenizer:encode(prompt, { special = true, bos = not options.chat }):totable()
  local stream, pieces = tokenizer:stream(ids), {}
  local function give(piece)
    if piece == "" then return end
    pieces[#pieces + 1] = piece
    if emit then emit(piece) end
  end
  generator.run(self.model, { ids }, stop.ids(self.model, tokenizer), options, function(_, id) give(stream:push(id)) end)
  give(stream:finish())
  return table.concat(pieces)
end

-- Writes the trained adapter in PEFT's format.
function Engine:save_adapter(directory)
  if not self.adapter then error("save_adapter: nothing has been trained or loaded", 2) end
  assert(lora.save(self.model, self.adapter, directory))
end

function Engine:close()
  if self.adapter then lora.remove(self.model, self.adapter) end
  self.model:close()
end

return Engine
