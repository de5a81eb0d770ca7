-- The options that say what a model is where its config.json does not, shared by the recipes that open models.
local model_options = {}

model_options.list = {
  { "family", type = "string", metavar = "NAME",
    help = "take the model for one of this family; sizes that config.json does not say come from the tensors' shapes" },
  { "set", type = "pair", repeats = true, help = "a key of config.json, its value as JSON (repeatable)" },
}

-- A list of `options` and these behind them.
function model_options.add(options)
  local all = {}
  for i, one in ipairs(options) do all[i] = one end
  for _, one in ipairs(model_options.list) do all[#all + 1] = one end
  return all
end

-- What Model.open and onn.classifier take of a recipe's options.
function model_options.of(opt) return { dtype = opt.dtype, family = opt.family, set = opt.set, seed = opt.seed, adapter = opt.adapter } end

return model_options
