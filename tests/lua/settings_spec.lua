local cli = require "onn.cli"
local json = require "onn.core.json"
local settings = require "onn.settings"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"

describe("onn.settings", function()
  local model
  setup(function() model = tiny.model(support.scratch() .. "/model") end)
  after_each(function() for _, name in ipairs { settings.file, settings.legacy_file } do os.remove(model .. "/" .. name) end end)
  teardown(support.scratch_remove)

  local function write(value, name)
    return support.write(model .. "/" .. (name or settings.file), type(value) == "string" and value or json.encode(value))
  end
  local function apply(opt, only)
    opt._given = opt._given or {}
    return opt, settings.apply(opt, model, only)
  end
  local function refused(pattern, opt)
    local ok, e = pcall(apply, opt or {})
    assert.is_false(ok)
    assert.is_true(cli.is_user_error(e), tostring(e))
    assert.matches(pattern, tostring(e))
  end

  it("changes nothing where there is no file", function()
    local opt, path = apply { batch = 8 }
    assert.is_nil(path)
    assert.equal(8, opt.batch)
  end)

  it("takes what the file says", function()
    write { architecture = { num_layers = 3 }, config = { batch_size = 4, seq_len = 32, micro_batch = 2, gradient_checkpointing = true,
      chunk_size = 3, threads = 1, active_layers = json.array { 0, 2 }, compute_dtype = "f32" } }
    local opt, path = apply { batch = 8, seq_len = 512 }
    assert.equal(model .. "/universal_config.json", path)
    assert.same({ 4, 32, 2, "on", 3, 1, "0,2", "f32" },
      { opt.batch, opt.seq_len, opt.micro_batch, opt.recompute, opt.chunk, opt.threads, opt.layers, opt.dtype })
  end)

  it("lets the command line win, and keeps a micro-batch to the batch it was found for", function()
    write { config = { batch_size = 4, micro_batch = 4, gradient_checkpointing = true, threads = 1 } }
    local opt = apply { batch = 6, threads = 2, _given = { batch = true, threads = true } }
    assert.same({ 6, 2 }, { opt.batch, opt.threads })
    assert.is_nil(opt.micro_batch)
    assert.is_nil(opt.recompute)
  end)

  it("gives a recipe only what it asks for", function()
    write { config = { batch_size = 4, compute_dtype = "bfloat16" } }
    local opt = apply({ batch = 8 }, { dtype = true })
    assert.same({ 8, "bf16" }, { opt.batch, opt.dtype })
  end)

  it("takes all layers as all, and no more threads than there are", function()
    write { config = { active_layers = json.array { 0, 1, 2 }, threads = 4096 } }
    local opt = apply {}
    assert.is_nil(opt.layers)
    assert.equal(system.cpu_count(), opt.threads)
  end)

  it("reads the older file where the newer is absent", function()
    write({ optimal_config = { chunk_size = 2, sparse_layers = json.array { 1 } } }, settings.legacy_file)
    local opt = apply {}
    assert.same({ 2, "1" }, { opt.chunk, opt.layers })
    write { config = { chunk_size = 5 } }
    opt = apply {}
    assert.same({ 5 }, { opt.chunk })
  end)

  it("leaves another model's file alone, unless the user named it", function()
    local path = write { architecture = { num_layers = 40 }, config = { batch_size = 4 } }
    local opt, used = apply { batch = 8 }
    assert.is_nil(used)
    assert.equal(8, opt.batch)
    refused("for a model of 40 layers", { config = path })
  end)

  it("refuses wrong values in one line", function()
    write { config = { batch_size = "four" } }
    refused "config.batch_size' should be a positive integer, found four"
    write { config = { batch_size = 2.5 } }
    refused "config.batch_size"
    write { config = { active_layers = json.array { 0, -1 } } }
    refused "config.active_layers"
    write { config = { gradient_checkpointing = 1 } }
    refused "config.gradient_checkpointing' should be true or false"
    write { config = { compute_dtype = "int8" } }
    refused "config.compute_dtype' should be f32 or bf16"
    write { config = json.array {} }
    refused "config' should be an object"
    write "{"
    refused "universal_config.json"
    refused("nowhere.json", { config = model .. "/nowhere.json" })
  end)
end)
