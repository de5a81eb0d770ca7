-- onn.trainer: training with settings fixed at construction.
--   local trainer = require("onn.trainer").new { model_path = "models/phi-4", sparse_layers = { 0, 1, 38, 39 }, lora_rank = 8 }
--   trainer:train(data, { epochs = 1 })
local Engine = require "onn.engine"
local nearest = require "onn.nearest"

local Trainer = {}
Trainer.__index = Trainer

local known = { "model_path", "chunk_size", "sparse_layers", "lora_rank", "lora_alpha", "batch_size", "learning_rate", "memory",
  "threads", "dtype", "seed", "scratch" }

-- model_path is needed; sparse_layers lists 0-based blocks (default: all); chunk_size: blocks that are read together where the model
-- is streamed; scratch: a directory for what training spills (default: a temporary one).
function Trainer.new(options)
  nearest.check(options, known, "trainer.new")
  if not options.model_path then error("trainer.new: model_path is needed", 2) end
  local engine = Engine.open(options.model_path, { memory = options.memory, threads = options.threads, dtype = options.dtype,
    seed = options.seed, scratch = options.scratch })
  return setmetatable({ engine = engine, options = { layers = options.sparse_layers, rank = options.lora_rank, alpha = options.lora_alpha,
    batch = options.batch_size, lr = options.learning_rate, chunk = options.chunk_size } }, Trainer)
end

-- data and options as Engine:train takes them; options win over the constructor's.
function Trainer:train(rows, options)
  local opt = {}
  for k, v in pairs(self.options) do opt[k] = v end
  if self.engine.adapter then opt.layers, opt.rank, opt.alpha = nil, nil, nil end -- what is there is trained further
  for k, v in pairs(options or {}) do opt[k] = v end
  return self.engine:train(rows, opt)
end

function Trainer:save(directory) self.engine:save_adapter(directory) end
function Trainer:close() self.engine:close() end

return Trainer
