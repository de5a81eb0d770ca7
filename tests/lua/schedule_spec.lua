local schedule = require "onn.schedule"

describe("schedule", function()
  it("stays at 1 when constant", function()
    local rate = schedule.new { kind = "constant", total = 10 }
    for step = 1, 10 do assert.are.equal(1, rate.at(step)) end
  end)

  it("rises evenly during warm-up and is 1 behind it", function()
    local rate = schedule.new { kind = "linear", warmup = 3, total = 13 }
    assert.are.same({ 0.25, 0.5, 0.75, 1 }, { rate.at(1), rate.at(2), rate.at(3), rate.at(4) })
  end)

  it("takes the warm-up as a share, rounded up", function()
    assert.are.equal(3, schedule.new({ warmup = 0.03, total = 100 }).warmup)
    assert.are.equal(1, schedule.new({ warmup = 0.03, total = 10 }).warmup)
  end)

  it("ends at 0 with the update that would follow the last", function()
    for _, kind in ipairs { "linear", "cosine" } do
      local rate = schedule.new { kind = kind, warmup = 2, total = 12 }
      assert.is_true(math.abs(rate.at(13)) < 1e-12)
      assert.is_true(rate.at(12) > 0)
      for step = 4, 13 do assert.is_true(rate.at(step) < rate.at(step - 1)) end
    end
    assert.is_true(math.abs(schedule.new({ kind = "cosine", total = 10 }).at(6) - 0.5) < 1e-12)
  end)

  it("never begins at 0", function()
    assert.are.equal(1, schedule.new({ kind = "cosine", warmup = 0.03, total = 1 }).at(1))
    assert.is_true(schedule.new({ kind = "cosine", warmup = 0.5, total = 4 }).at(1) > 0)
  end)

  it("refuses unknown kinds", function()
    assert.has_error(function() schedule.new { kind = "sine" } end, "schedule 'sine' is not known; there are constant, cosine and linear")
  end)
end)
