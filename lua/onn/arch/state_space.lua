-- Models of selective state spaces alone (mamba, mamba 2): the decoder's blocks without attention and feed-forward part, each one norm and
-- one mixer. What is told apart from the decoder is how the config is read.
local decoder = require "onn.arch.decoder"
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"
local values = require "onn.arch.config"

local state_space = setmetatable({}, { __index = decoder })

local SIZE = values.integer(1, 2 ^ 31 - 1)
local kinds = {
  { "width", SIZE, needed = true }, { "layers", values.integer(1, 10000), needed = true }, { "vocabulary", SIZE, needed = true },
  { "eps", values.positive }, { "tied", values.flag },
}

-- Sizes and switches of a model from its config.json, or nil and a list of what is missing or wrong. family.ssm: the mixer's (onn.arch.selective).
function state_space.describe(config, family)
  local c, wrong = { names = family.names, family = family.name, norm = "rms", bias = {} }, {}
  for key, name in pairs(family.config) do
    c[key] = config[name]
    if c[key] == nil then c[key] = family.defaults[key] end
  end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if kind.needed or c[key] ~= nil then values.check(family.config[key] or key, c[key], kind[2], wrong) end
  end
  if #wrong == 0 then c.ssm = selective.describe(config, family.ssm, c.width, wrong) end
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  c.positions, c.inner = 2 ^ 20, c.ssm.inner -- any length goes; so many tokens in a row are enough for plans
  c.mixers, c.feeds = sizes.each_layer(c, function() return c.ssm.kind end), {}
  return c
end

return state_space
