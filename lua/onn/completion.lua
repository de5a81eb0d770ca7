-- Text from prompts: ids are decoded as they come, and stop strings are watched for across pieces.
local chat = require "onn.chat"
local generator = require "onn.generator"
local plan = require "onn.plan"
local stop = require "onn.stop"
local units = require "onn.units"

local completion = {}

-- The ids (a Lua table) of a prompt: a text, or a list of messages {role, content} for the chat template.
-- vocabulary: how many ids the model has. Returns nil, message, code where there is no template, nothing to begin with, or an id
-- that the model does not have.
function completion.encode(tokenizer, prompt, vocabulary)
  local text, message, code = prompt
  if type(prompt) == "table" then
    local template
    template, message, code = chat.template(tokenizer)
    if not template then return nil, message, code end
    text, message, code = chat.render(template, tokenizer, prompt, true)
    if not text then return nil, message, code end
  end
  local ids = tokenizer:encode(text, { special = true, bos = type(prompt) == "string" }):totable()
  if #ids == 0 then return nil, "the prompt is empty", "argument" end
  for place, id in ipairs(ids) do
    if id >= vocabulary then
      return nil, ("token %d of the prompt is %d; the model has ids 0 to %d"):format(place, id, vocabulary - 1), "argument"
    end
  end
  return ids
end

-- Brings the weights to where they serve generating from `prompts` (lists of ids), unless they serve as they are: in as many slots as
-- fit, or nearly. opt, rates: plan.generation's. Returns its plan, or nil and the line that says why not.
function completion.load(model, prompts, opt, rates)
  local best = plan.generation(model, prompts, opt, rates)
  if not best.fits then
    return nil, ("%s: a text of %d tokens needs at least %s, the budget is %s (memory and ram set it)"):format(model.path, best.tokens,
      units.need(best.minimum), units.bytes(opt.budget))
  end
  local ring = model.loaded_as
  if ring then
    local now = plan.generation(model, prompts, setmetatable({ slots = ring.slots, chunk = ring.chunk }, { __index = opt }), rates)
    local same = now.tile == ring.tile and now.chunk == ring.chunk
    if same and now.fits and best.bytes_per_sweep > 0.8 * now.bytes_per_sweep then return now end
  end
  local ok, message, code = model:load_by(best.ring)
  if not ok then return nil, message, code end
  return best
end

-- Continues prompts (lists of ids) together. options: see onn.sampler; max_tokens; stop, a list of texts that end a sequence and
-- are not part of it. show(sequence, piece) hears text as it comes. Returns the texts and generator.run's report.
function completion.run(model, tokenizer, prompts, options, show)
  local streams, watchers, texts = {}, {}, {}
  for s, ids in ipairs(prompts) do streams[s], watchers[s], texts[s] = tokenizer:stream(ids), stop.watch(options.stop or {}), {} end
  local function give(s, text)
    if text == "" then return end
    texts[s][#texts[s] + 1] = text
    if show then show(s, text) end
  end
  local report = generator.run(model, prompts, stop.ids(model, tokenizer), options, function(s, id)
    local text, ended = watchers[s].push(streams[s]:push(id))
    give(s, text)
    watchers[s].ended = ended
    return ended
  end)
  for s in ipairs(prompts) do
    if not watchers[s].ended then
      local text, ended = watchers[s].push(streams[s]:finish())
      give(s, text)
      if not ended then give(s, watchers[s].finish()) end
    end
    texts[s] = table.concat(texts[s])
  end
  return texts, report
end

return completion
