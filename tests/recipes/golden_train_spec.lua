-- One update of every golden decoder, encoder and model with states through the recipe: adapters and all weights, f32 and bf16, so that the plan's
-- dry run, the update and what watches the weights all take each family's blocks.
local program = require "onn.core.program"
local store = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local shared = program.home .. "/../shared/golden"

local function folders()
  local list = {}
  for _, name in ipairs { "llama", "phi3", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "phi", "mixtral" } do
    list[#list + 1] = shared .. "/" .. name
  end
  for _, name in ipairs(system.list(program.home .. "/tests/golden/state_space")) do
    list[#list + 1] = program.home .. "/tests/golden/state_space/" .. name
  end
  return list
end

describe("one update", function()
  local folder, ids
  setup(function()
    folder = support.scratch()
    local rows = {}
    for r = 1, 2 do
      rows[r] = {}
      for t = 1, 9 do rows[r][t] = (r * 7 + t * 5) % 30 + 4 end
    end
    ids = folder .. "/ids.safetensors"
    assert(store.write(ids, { input_ids = tensors.from_table(rows, "i64") }, { format = "pt" }))
  end)
  teardown(function() support.scratch_remove() end)

  for _, path in ipairs(folders()) do
    if not system.exists(path) then
      pending(path .. " is absent")
    else
      for _, how in ipairs { { "--dtype", "f32" }, { "--dtype", "bf16" }, { "--dtype", "f32", "--full" } } do
        it(("of %s, %s"):format(path:match "[^/]+$", table.concat(how, " ")), function()
          local arguments = { "train", path, ids, "--out", folder .. "/out", "--overwrite", "--steps", "1", "--batch", "2", "--threads", "1", "-q" }
          for _, one in ipairs(how) do arguments[#arguments + 1] = one end
          local status, _, err = support.run(arguments)
          assert.equal(0, status, err)
        end)
      end
    end
  end
end)
