-- onn.engine: a model that configures itself, for scripts.
--   local engine = Engine.open("models/phi-4"); engine:train({ { input = "Hello", output = "World" } }, { epochs = 1 })
--   print(engine:generate("Once upon a time", { max_tokens = 50 })); engine:close()
local batch = require "onn.batch"
local completion = require "onn.completion"
local data = require "onn.data"
local embedding = require "onn.embedding"
local layers = require "onn.layers"
local limit = require "onn.limit"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local nearest = require "onn.nearest"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local sampler = require "onn.sampler"
local Session = require "onn.session"
local settings = require "onn.settings"
local system = require "onn.core.system"
local Tokenizer = require "onn.tokenizer"
local training = require "onn.training"
local units = require "onn.units"

local Engine = {}
Engine.__index = Engine

local known = { "config", "memory", "ram", "threads", "device", "dtype", "adapter", "seed", "scratch" }

local USUAL_TOKENS = 256 -- of a generation, where a plan must be made before one is asked for

-- Brings the weights to where a plan has them. Weights that were trained themselves are in memory alone, and stay.
local function load_by(self, plans)
  if not self.whole then assert(self.model:load_by(plans.ring)) end
end

-- Bytes of the adapter that is on the model, with the copies that bf16 arithmetic reads.
local function adapter_bytes(self)
  local total = 0
  for _, one in ipairs(self.adapter and self.adapter.modules or {}) do total = total + one.A:bytes() + one.B:bytes() end
  return total * (self.model.dtype == "bf16" and 1.5 or 1)
end

-- The weights where they serve generating from `prompts` (lists of ids). `opt`: max_tokens, adapter (a directory). Returns the plan.
local function load_for_text(self, prompts, opt)
  local wanted = { max_tokens = opt.max_tokens or USUAL_TOKENS, budget = self.machine.budget, chunk = self.opt.chunk, adapter = opt.adapter,
    adapter_bytes = adapter_bytes(self) }
  if self.whole then return plan.generation(self.model, prompts, wanted) end
  local plans, message = completion.load(self.model, prompts, wanted)
  return plans or error(message, 0)
end

-- Opens a model directory and loads its weights, or streams them where they do not fit. options: config, memory ("4GB"), ram, threads,
-- device, dtype, adapter, seed, scratch (a directory for what training spills; default: a temporary one). Raises with one clear line
-- when it cannot.
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
  if model:unfit "tokens" then error(model:unfit "tokens", 2) end
  local self = setmetatable({ model = model, machine = machine, opt = opt }, Engine)
  self.tokenizer = Tokenizer.open(model.directory)
  load_for_text(self, {}, opt)
  if opt.adapter then self.adapter = assert(lora.load(model, opt.adapter)) end
  return self
end

local function text_tokenizer(self)
  return self.tokenizer or error(self.model.directory .. ": no usable tokenizer.json", 3)
end

-- Training's options: the recipe's, with _ for -, that mean something here; on_step(result) hears of every update.
local trained_with = { "epochs", "steps", "batch", "micro_batch", "seq_len", "rank", "alpha", "dropout", "lr", "schedule", "warmup", "clip",
  "weight_decay", "betas", "layers", "count", "ratio", "targets", "full", "chunk", "pack", "shuffle", "prompt_key", "completion_key",
  "template", "loss", "adapter", "recompute", "seed", "rslora", "on_step", "slots", "prefetch", "prefix_cache" }
local generated_with = { "max_tokens", "chat", "stop", unpack(sampler.options) }

-- An adapter that is there is gone on from, unless options say what a new one is like: then it goes. Returns it, or nil.
local function attached(self, options)
  local another = false
  for _, key in ipairs { "rank", "alpha", "targets", "layers", "rslora", "adapter", "full" } do another = another or options[key] ~= nil end
  if self.adapter and another then
    lora.remove(self.model, self.adapter)
    self.adapter = nil
  end
  return self.adapter
end

-- What is trained: opt.layers (a set, or nil) and opt.rank, of the options or of the adapter that is gone on from.
local function choose_layers(self, opt)
  local model, chosen, wrong = self.model
  opt.rank = opt.rank or Session.defaults.rank
  if opt.attached then
    opt.rank, chosen = opt.attached.rank, {}
    for _, item in ipairs(model:linear_layers()) do if item.layer.adapter then chosen[item.stage.index] = true end end
  elseif opt.adapter then
    opt.rank, chosen = lora.extent(opt.adapter, model)
    if not opt.rank then error(chosen, 3) end
  elseif type(opt.layers) == "table" then
    chosen, wrong = layers.set(opt.layers, model)
  else
    chosen, wrong = layers.parse(opt.layers, model, opt)
  end
  if chosen == false then error(wrong, 3) end
  opt.layers = chosen
end

-- All updates of a run. Returns {steps, loss_first, loss_last, losses}.
local function run(opt, session, set, order, plans)
  session:watch()
  local losses = {}
  while session.step < opt.total_steps do
    for update in session:ahead(data.batches(set, order), plans.ahead_tokens, plans.ahead_ram) do
      local result = session:update(update, order.epoch)
      for _, b in ipairs(update) do batch.free(b) end
      losses[#losses + 1] = result.loss
      if opt.on_step then opt.on_step(result) end
      if session.skipped_in_row >= Session.patience then
        error(("train: %d updates in a row had a loss or gradient that is not finite"):format(Session.patience), 0)
      end
      if session.step >= opt.total_steps then break end
    end
    order.epoch = order.epoch + 1
  end
  assert(session:verify())
  return { steps = session.step, loss_first = losses[1], loss_last = losses[#losses], losses = losses }
end

-- rows: a file name, or a table of examples ({input, output}, {prompt, completion}, {text}, {messages}); options: training's.
-- Returns {steps, loss_first, loss_last, losses, plan}. Raises with one clear line when it cannot.
function Engine:train(rows, options)
  options = options or {}
  nearest.check(options, trained_with, "train")
  local found = self.opt -- settings from universal_config.json among them
  local opt = { batch = found.batch or 8, seq_len = found.seq_len or 512, epochs = 1, recompute = "auto", shuffle = true,
    seed = found.seed, layers = found.layers, chunk = found.chunk }
  for k, v in pairs(options) do opt[k] = v end
  if opt.batch == found.batch and opt.seq_len == found.seq_len then -- found for these alone
    opt.micro_batch, opt.recompute = opt.micro_batch or found.micro_batch, found.recompute or opt.recompute
  end
  local wrong = training.check(options)
  if wrong then error("train: " .. wrong, 2) end
  opt.seq_len = math.min(opt.seq_len, self.model.sizes.positions)
  opt._given = options
  opt.budget, opt.vocab_size = self.machine.budget, self.model.sizes.vocabulary
  if self.model.net.trains_on then
    error(("train: a model of the family %s is trained on %s"):format(self.model.family, self.model.net.trains_on), 2)
  end
  opt.classes, opt.own = require("onn.classifier").classes(self.model), self.model.sizes.top ~= nil
  opt.attached = attached(self, options)
  choose_layers(self, opt)
  local set = assert(data.open(rows, text_tokenizer(self), opt))
  if self.whole then opt.prefix_cache = false end -- its key is of the files' weights
  local plans = training.plan(self.model, opt, set, limit.rates(self.model))
  if not plans.fits then error("train: " .. training.too_large(plans, opt.budget), 2) end
  load_by(self, plans)
  self.whole = self.whole or opt.full
  opt.carried = training.carried(self.model, opt)
  local order = { batch = opt.batch, micro_batch = plans.micro_batch, seq_len = opt.seq_len, pack = opt.pack, shuffle = opt.shuffle,
    carried = opt.carried, seed = opt.seed, epoch = 0, cursor = 0 }
  opt.total_steps, opt.sweep = opt.steps or data.updates(set, order) * opt.epochs, plans.sweep
  local temporary
  if training.needs_scratch(plans) then
    temporary = not found.scratch and assert(system.make_temp_dir()) or nil
    opt.scratch = found.scratch or temporary
  end
  opt.carries = training.carries(opt, plans)
  local session
  local ok, result = pcall(function()
    session, wrong = Session.new(self.model, opt)
    if not session then error("train: " .. wrong, 0) end
    self.adapter, self.trained = session.adapter, true
    training.begin(self.model, opt, plans, session)
    return run(opt, session, set, order, plans)
  end)
  if session then training.leave(session, true) end
  if temporary then system.remove_tree(temporary) end
  if not ok then error(tostring(result), 2) end
  session:close(true)
  result.plan = plans
  return result
end

-- An iterator over pieces of text as they are generated; options as generate's.
function Engine:stream(prompt, options)
  nearest.check(options or {}, generated_with, "stream")
  return coroutine.wrap(function() self:generate(prompt, options, coroutine.yield) end)
end

-- Returns the generated text. prompt: a text, or a list of messages {role, content}. options: max_tokens, stop (a text or a list), chat
-- (the prompt is what the user says), and the sampler's. emit(piece) hears the text as it comes.
function Engine:generate(prompt, options, emit)
  options = options or {}
  nearest.check(options, generated_with, "generate")
  local opt = {}
  for k, v in pairs(options) do opt[k] = v end
  if self.model.net.continues == false then
    error(("generate: a model of the family %s does not continue a text"):format(self.model.family), 2)
  end
  if type(opt.stop) == "string" then opt.stop = { opt.stop } end
  if opt.chat and type(prompt) == "string" then prompt = { { role = "user", content = prompt } } end
  local tokenizer = text_tokenizer(self)
  local ids = assert(completion.encode(tokenizer, prompt, self.model.sizes.vocabulary))
  opt.together = load_for_text(self, { ids }, opt).together
  local texts = completion.run(self.model, tokenizer, { ids }, opt, emit and function(_, piece) emit(piece) end)
  return texts[1]
end

-- Embeddings of texts: f32 (texts, width). texts: a text, or a list of texts (or of lists of ids). options: pooling ("mean", "cls", "max",
-- "last") and normalize, by default as the model directory's files say; batch (tokens that go through together).
function Engine:embed(texts, options)
  options = options or {}
  nearest.check(options, { "pooling", "normalize", "batch" }, "embed")
  local how = assert(embedding.settings(self.model.directory))
  for key, value in pairs(options) do how[key] = value end
  if type(texts) == "string" then texts = { texts } end
  if type(texts[1]) == "string" then how.tokenizer = text_tokenizer(self) end
  return embedding.embed(self.model, texts, how)
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
