local sampler = require "onn.sampler"
local tensors = require "onn.core.tensor"

-- How often each id is drawn in n tries.
local function draw(values, options, n, recent)
  local logits, counts = tensors.from_table(values, "f32"), {}
  for step = 1, n do
    local id = sampler.choose(logits, options, recent or {}, step)
    counts[id] = (counts[id] or 0) + 1
  end
  return counts
end

-- Logits of these probabilities.
local function logs(shares)
  local list = {}
  for i, p in ipairs(shares) do list[i] = math.log(p) end
  return list
end

describe("sampler", function()
  local shares = { 0.1, 0.4, 0.05, 0.25, 0.2 }

  it("takes the likeliest at temperature 0, the first of equals", function()
    assert.same({ [1] = 5 }, draw(logs(shares), { temperature = 0, top_k = 3 }, 5))
    assert.same({ [0] = 1 }, draw({ 2, 2, 1 }, { temperature = 0 }, 1))
    assert.same({ [0] = 1 }, draw({ 2, 2, 1 }, { temperature = 0, repeat_penalty = 1.0001 }, 1))
  end)

  it("draws each by its share", function()
    local counts = draw(logs(shares), { temperature = 1 }, 4000)
    for i, p in ipairs(shares) do assert.is_true(math.abs(counts[i - 1] / 4000 - p) < 0.03, i) end
    counts = draw(logs(shares), { temperature = 0.5 }, 4000) -- shares squared
    local sum = 0
    for _, p in ipairs(shares) do sum = sum + p * p end
    for i, p in ipairs(shares) do assert.is_true(math.abs((counts[i - 1] or 0) / 4000 - p * p / sum) < 0.03, i) end
  end)

  it("keeps the k likeliest, the share p, and those above min-p", function()
    local function kept(options)
      options.temperature = 1
      local ids = {}
      for id in pairs(draw(logs(shares), options, 600)) do ids[#ids + 1] = id end
      table.sort(ids)
      return ids
    end
    assert.same({ 1 }, kept { top_k = 1 })
    assert.same({ 1, 3 }, kept { top_k = 2 })
    assert.same({ 1 }, kept { top_p = 0 })
    assert.same({ 1, 3 }, kept { top_p = 0.6 })
    assert.same({ 1, 3, 4 }, kept { top_p = 0.8 })
    assert.same({ 0, 1, 2, 3, 4 }, kept { top_p = 1 })
    assert.same({ 1, 3 }, kept { top_k = 3, top_p = 0.7 }) -- p of the three that k leaves: 0.65 / 0.85
    assert.same({ 1, 3, 4 }, kept { min_p = 0.45 })
    assert.same({ 1 }, kept { min_p = 1 })
  end)

  it("finds the share p of a flat vocabulary too", function()
    local flat = {}
    for i = 1, 2000 do flat[i] = -20 * (i > 1000 and 1 or 0) end
    for id in pairs(draw(flat, { temperature = 1, top_p = 0.9 }, 300)) do assert.is_true(id <= 900) end
    local steep = { 30 }
    for i = 2, 2000 do steep[i] = 0 end
    assert.same({ [0] = 50 }, draw(steep, { temperature = 1, top_p = 0.99 }, 50))
  end)

  it("makes what is there already less likely", function()
    assert.same({ [0] = 1 }, draw({ 2, 3, -1 }, { temperature = 0, repeat_penalty = 2 }, 1, { [1] = true }))
    assert.same({ [1] = 1 }, draw({ -1.5, -1, -9 }, { temperature = 0, repeat_penalty = 1.2 }, 1, { [1] = true }))
    assert.same({ [0] = 1 }, draw({ -1.5, -1, -9 }, { temperature = 0, repeat_penalty = 2 }, 1, { [1] = true }))
  end)

  it("draws the same for the same seed", function()
    local function sequence(seed)
      local logits, ids = tensors.from_table(logs(shares), "f32"), {}
      for step = 1, 40 do ids[step] = sampler.choose(logits, { temperature = 1, seed = seed }, {}, step) end
      return ids
    end
    assert.same(sequence(1), sequence(1))
    assert.not_same(sequence(1), sequence(2))
  end)
end)
