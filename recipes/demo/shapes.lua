-- shapes: writes a small set of images of ten shapes, to train an image net on
local cli = require "onn.cli"
local random = require "onn.core.ops".random
local store = require "onn.store"
local tensors = require "onn.core.tensor"

local opt = cli.parse {
  name = "demo/shapes",
  summary = "Writes OUT, a safetensors file with `x` u8 (n, 3, size, size) and `y` (n): ten shapes at random places, sizes and colours, in noise.",
  example = "onn recipes/demo/shapes.lua shapes.safetensors --count 4000",
  arguments = { { "OUT", "safetensors file to write" } },
  options = {
    { "count", type = "integer", default = 4000, min = 1, help = "images" },
    { "size", type = "integer", default = 32, min = 8, max = 512, help = "their side in pixels" },
    { "noise", type = "number", default = 60, min = 0, max = 255, help = "largest change of a value by noise" },
  },
}

-- Is a point within a shape? u and v run from -1 to 1 across it.
local abs = math.abs
local shapes = {
  function(u, v) return u * u + v * v < 1 end,                                                        -- disc
  function(u, v) local r = u * u + v * v return r < 1 and r > 0.4 end,                                -- ring
  function(u, v) return abs(u) < 0.85 and abs(v) < 0.85 end,                                          -- square
  function(u, v) local m = math.max(abs(u), abs(v)) return m < 0.9 and m > 0.55 end,                  -- frame
  function(u, v) return v > -0.8 and v < 0.8 and abs(u) < (v + 0.8) / 1.6 end,                        -- triangle
  function(u, v) return math.min(abs(u), abs(v)) < 0.25 and math.max(abs(u), abs(v)) < 1 end,         -- plus
  function(u, v) return abs(abs(u) - abs(v)) < 0.3 and math.max(abs(u), abs(v)) < 0.95 end,           -- cross
  function(u, v) return math.max(abs(u), abs(v)) < 1 and math.floor(v * 2.5 + 2.5) % 2 == 0 end,      -- lines across
  function(u, v) return math.max(abs(u), abs(v)) < 1 and math.floor(u * 2.5 + 2.5) % 2 == 0 end,      -- lines down
  function(u, v) return abs(u) + abs(v) < 1 end,                                                      -- diamond
}

local size, pixels, labels = opt.size, {}, {}
for i = 1, opt.count do
  local drawn = 0
  local function draw() drawn = drawn + 1 return random(opt.seed, "shapes/" .. i, drawn) end
  local class = math.floor(draw() * #shapes)
  local radius = size * (0.2 + 0.15 * draw())
  local x, y = radius + draw() * (size - 2 * radius), radius + draw() * (size - 2 * radius)
  local front, back = {}, {}
  for c = 1, 3 do
    back[c] = 255 * draw()
    front[c] = (back[c] + 80 + 95 * draw()) % 255
  end
  local inside, bytes = shapes[class + 1], {}
  for c = 1, 3 do
    for row = 0, size - 1 do
      for column = 0, size - 1 do
        local value = inside((column + 0.5 - x) / radius, (row + 0.5 - y) / radius) and front[c] or back[c]
        value = value + opt.noise * (2 * draw() - 1)
        bytes[#bytes + 1] = string.char(math.floor(math.max(0, math.min(255, value))))
      end
    end
  end
  pixels[i], labels[i] = table.concat(bytes), class
end
cli.check(store.write(opt.out, { x = tensors.from_data(table.concat(pixels), "u8", { opt.count, 3, size, size }),
  y = tensors.from_table(labels, "i32") }, { format = "pt" }))
