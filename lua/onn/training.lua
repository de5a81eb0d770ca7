-- What training's options mean together: what is wrong among them, the plan, where scratch data lies; for the recipe and for scripts.
local checkpoint = require "onn.checkpoint"
local cli = require "onn.cli"
local data = require "onn.data"
local plan = require "onn.plan"
local system = require "onn.core.system"
local units = require "onn.units"

local training = {}

local function given_of(opt) return opt._given or opt end

local full_excludes = { "rank", "alpha", "dropout", "targets", "adapter" }
local token_options = { "seq_len", "pack", "prompt_key", "completion_key", "template", "loss", "prefix_cache" }
local image_options = { "image_size", "mean", "std" }
local adapter_excludes = { "rank", "alpha", "targets", "layers" } -- the adapter's own say what they are

local function flag(key) return "--" .. key:gsub("_", "-") end

-- check(opt): nil, or one line that says which options do not go together or have no sense.
function training.check(opt)
  local given = given_of(opt)
  for _, key in ipairs(opt.full and full_excludes or opt.adapter and adapter_excludes or {}) do
    if given[key] ~= nil and given[key] ~= false then
      return ("%s: %s"):format(flag(key), opt.full and "--full trains the model's own weights, without an adapter"
        or "the adapter given with --adapter says that itself")
    end
  end
  if opt.full and opt.out and opt.model and system.realpath(opt.out) == (system.realpath(opt.model) or "") then
    return "--full: --out is the model itself; name another directory"
  end
  local betas = opt.betas
  if betas and (#betas ~= 2 or betas[1] < 0 or betas[1] >= 1 or betas[2] < 0 or betas[2] >= 1) then
    return ("--betas: expected two numbers from 0 to below 1, got %s"):format(table.concat(betas, ","))
  end
  if opt.eval_every and not opt.eval then return "--eval-every: held-out data is needed, --eval DATA" end
  for _, key in ipairs { "chunk", "slots" } do
    if opt.full and given[key] then return ("--%s: with --full all weights rest in memory"):format(key) end
  end
  if opt.count and opt.ratio then return "--count and --ratio say the same thing twice: give one" end
end

-- What of a recipe's options has no sense for this model's data: nil, or one line.
function training.check_data(model, opt)
  local images = model.net.data == "images"
  for _, key in ipairs(images and token_options or image_options) do
    if given_of(opt)[key] ~= nil then
      return ("%s: this model takes %s"):format(flag(key), images and "images" or "text")
    end
  end
  if images and opt.full and opt.micro_batch and opt.micro_batch < opt.batch then
    return "--micro-batch: with --full batch norms take the statistics of the whole batch"
  end
end

-- Does the net's state go on from update to update? It does where the rows of a long text follow each other.
function training.carried(model, opt)
  local c = model.sizes
  return opt.pack == "stream" and model.net.memory ~= nil and not (c.bidirectional or c.classes) or nil
end

-- The plan of training `set` (of onn.data) with a recipe's options (budget among them): for its rows as long as they are. rates:
-- onn.limit's; held_out: other rows that will go through the model as many at once, or nil.
function training.plan(model, opt, set, rates, held_out)
  if model.net.data == "images" then return require("onn.plan.images").training(model, opt, set, rates) end
  local rows = data.rows(set, { pack = opt.pack, seq_len = opt.seq_len }):info()
  local longest = rows.longest
  if held_out then longest = math.max(longest, data.rows(held_out, { pack = opt.pack, seq_len = opt.seq_len }):info().longest) end
  local wanted = { rates = rates, seq_len = math.min(opt.seq_len, longest), row_tokens = rows.tokens / rows.rows,
    batch = math.min(opt.batch, rows.rows) }
  local updates = math.ceil(rows.rows / opt.batch)
  wanted.reuse_prefix = opt.prefix_cache ~= false and not opt.full and (opt.steps or updates * opt.epochs) > updates
  wanted.all_tokens, wanted.supervised = rows.tokens, data.supervised(set)
  return plan.training(model, setmetatable(wanted, { __index = opt }))
end

-- The order in which a held-out loss is taken within a run's memory: as many micro-batches together as an update has, where their carries
-- stay in memory.
function training.evaluation(order, plans)
  local whole = { together = plans.carries.quota and 1 or plans.micros, sweep = { head_together = plans.together } }
  for k, v in pairs(order) do whole[k] = v end
  return whole
end

-- Where spilled carries and the prefix cache lie: --scratch, else in --out.
local function scratch(opt) return opt.scratch or opt.out .. "/scratch" end

-- Why a plan that does not fit cannot run: one line with the bytes that are needed.
function training.too_large(plans, budget)
  if plans.full then
    return ("all weights rest in memory with their gradients and moments when they are trained: at least %s, the budget is %s; "
      .. "adapters (without --full) train a model that streams from disk"):format(units.need(plans.minimum), units.bytes(budget))
  end
  return ("this run needs at least %s, the budget is %s: try a smaller %s or --rank, fewer --layers, or --memory"):format(
    units.need(plans.minimum), units.bytes(budget), plans.unit == "images" and "--batch" or "--seq-len")
end

-- Will the run write to a scratch directory?
function training.needs_scratch(plans) return plans.carries.quota ~= nil or plans.suffix_flops_per_token ~= nil end

-- onn.carries' options of a run.
function training.carries(opt, plans)
  local spills = plans.carries.quota
  return { quota = spills or math.huge, pinned = plans.carries.pinned, expected = plans.carries.expected,
    scratch = spills and opt.scratch ~= false and scratch(opt) or nil }
end

-- The frozen-prefix cache of a run, or nil where nothing is frozen below what is trained or no sample comes twice.
function training.prefix(model, opt, plans)
  if not plans.suffix_flops_per_token then return nil end
  local prefix = require "onn.prefix"
  return prefix.open { key = prefix.key(model, plans.lowest + 2), quota = plans.prefix_ram, directory = scratch(opt), angles = model.angles,
    note = function(text) cli.note("prefix    %s", text) end }
end

-- Makes the directories of a run that is about to begin: results' and, where it has a use, scratch data's. Gives the session its
-- frozen-prefix cache.
function training.begin(model, opt, plans, session)
  if opt.out then cli.check(checkpoint.prepare(opt.out)) end
  if not (opt.out or opt.scratch) then return end -- a script's run that has no use for one
  session.scratch = { path = scratch(opt), made = not opt.scratch or not system.exists(opt.scratch) }
  if not training.needs_scratch(plans) then return end
  cli.check(system.mkdir_p(session.scratch.path))
  session.prefix = training.prefix(model, opt, plans)
end

-- The end of a run's scratch data. Without `done` the prefix cache's files stay, for the run that goes on from here; with it those of
-- a run before go too, if this one had no use for them.
function training.leave(session, done)
  if session.prefix then
    session.prefix:close(done)
  elseif done and session.scratch then
    require("onn.prefix").remove(session.scratch.path)
  end
  session.carries:clear()
  session.prefix = nil
  if session.scratch and session.scratch.made then os.remove(session.scratch.path) end -- unless something lies in it
end

-- Takes an older run's adapter out of a directory that now holds a whole model: readers would put it on.
function training.clear_adapter(directory)
  for _, name in ipairs { "adapter_config.json", "adapter_model.safetensors" } do os.remove(directory .. "/" .. name) end
end

return training
