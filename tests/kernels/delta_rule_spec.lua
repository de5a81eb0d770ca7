local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, flat, near, ints = reference.random, reference.flat, reference.near, reference.ints

-- The gated delta rule of flat tables; o: heads, size, groups, states, decays (1 or states), starts.
local function rule(q, k, v, decay, beta, o)
  local y, channels = {}, o.heads * o.size
  for s = 1, #o.starts - 1 do
    local state = {}
    for t = o.starts[s], o.starts[s + 1] - 1 do
      for ch = 0, channels - 1 do
        local h = math.floor(ch / o.size)
        local key = (t * o.groups + math.floor(h / (o.heads / o.groups))) * o.states
        local known, sum = 0, 0
        for n = 0, o.states - 1 do
          local fall = math.exp(decay[(t * o.heads + h) * o.decays + (o.decays == 1 and 0 or n) + 1])
          state[ch * o.states + n] = fall * (state[ch * o.states + n] or 0)
          known = known + k[key + n + 1] * state[ch * o.states + n]
        end
        for n = 0, o.states - 1 do
          local at = ch * o.states + n
          state[at] = state[at] + k[key + n + 1] * beta[t * o.heads + h + 1] * (v[t * channels + ch + 1] - known)
          sum = sum + q[key + n + 1] * state[at]
        end
        y[t * channels + ch + 1] = sum
      end
    end
  end
  return y
end

local function operands(o)
  local n, channels = o.starts[#o.starts], o.heads * o.size
  local qk = random("f32", { n, 2 * o.groups, o.states }, 5, -0.6, 0.6)
  return qk:narrow(2, 1, o.groups), qk:narrow(2, o.groups + 1, o.groups), random("f32", { n, channels + 1 }, 1):narrow(2, 2, channels),
    random("f32", { n, o.heads, o.decays }, 2, -1, 0), random("f32", { n, o.heads + 2 }, 3, 0, 1):narrow(2, 1, o.heads),
    random("f32", { n, channels }, 9)
end

local cases = {
  { heads = 1, size = 1, groups = 1, states = 1, decays = 1, starts = { 0, 1 } },
  { heads = 4, size = 3, groups = 2, states = 5, decays = 1, starts = { 0, 4, 4, 9 } },
  { heads = 4, size = 3, groups = 4, states = 5, decays = 5, starts = { 0, 3, 8 } },
  { heads = 2, size = 18, groups = 1, states = 19, decays = 1, starts = { 0, 4 } },
}

describe("gated delta rule", function()
  it("and its gradients, within each sequence", function()
    for _, o in ipairs(cases) do
      local q, k, v, decay, beta, dy = operands(o)
      local p = { flat(q), flat(k), flat(v), flat(decay), flat(beta) }
      near(ops.delta_rule(q, k, v, decay, beta, ints(o.starts)), rule(p[1], p[2], p[3], p[4], p[5], o), 1e-5, 2e-6, "y")
      local got, fdy = { ops.delta_rule_backward(dy, q, k, v, decay, beta, ints(o.starts)) }, flat(dy)
      for which, name in ipairs { "dq", "dk", "dv", "ddecay", "dbeta" } do
        local want = reference.gradient(function(values)
          local at = { p[1], p[2], p[3], p[4], p[5] }
          at[which] = values
          return reference.dot(fdy, rule(at[1], at[2], at[3], at[4], at[5], o))
        end, p[which])
        near(got[which], want, 2e-5, 5e-6, name)
      end
    end
  end)

  local wide = { heads = 6, size = 24, groups = 2, states = 20, decays = 1, starts = { 0, 70, 180 } }
  local each = { heads = 3, size = 10, groups = 3, states = 16, decays = 16, starts = { 0, 70, 180 } }

  it("goes on from a state", function()
    for _, o in ipairs { wide, each } do
      local q, k, v, decay, beta = operands(o)
      local whole = ops.delta_rule(q, k, v, decay, beta, ints { 0, 180 })
      local state, at = core.zeros("f32", { 1, o.heads * o.size, o.states }), 1
      for _, n in ipairs { 100, 1, 1, 78 } do
        local function cut(t) return t:narrow(1, at, n) end
        local y = ops.delta_rule(cut(q), cut(k), cut(v), cut(decay), cut(beta), ints { 0, n }, state)
        assert.equal(reference.bits(cut(whole)), reference.bits(y))
        at = at + n
      end
    end
  end)

  it("gives the same bits for any threads and any packing", function()
    for _, o in ipairs { wide, each } do
      local q, k, v, decay, beta, dy = operands(o)
      local y, dq, dk, dv, ddecay, dbeta = reference.any_threads(function()
        return ops.delta_rule(q, k, v, decay, beta, ints(o.starts)), ops.delta_rule_backward(dy, q, k, v, decay, beta, ints(o.starts))
      end)
      for _, part in ipairs { { 1, 70 }, { 71, 110 } } do
        local function cut(t) return t:narrow(1, part[1], part[2]) end
        local starts = ints { 0, part[2] }
        assert.equal(reference.bits(cut(y)), reference.bits(ops.delta_rule(cut(q), cut(k), cut(v), cut(decay), cut(beta), starts)))
        assert.equal(reference.bits(cut(dq), cut(dk), cut(dv), cut(ddecay), cut(dbeta)),
          reference.bits(ops.delta_rule_backward(cut(dy), cut(q), cut(k), cut(v), cut(decay), cut(beta), starts)))
      end
    end
  end)

  it("refuses what does not fit", function()
    local q, k, v, decay, beta = operands(wide)
    local starts = ints(wide.starts)
    assert.error_matches(function() ops.delta_rule(q, k, v, decay, random("f32", { 180, 7 }, 1), starts) end, "do not divide the channels")
    assert.error_matches(function() ops.delta_rule(q, k:narrow(3, 1, 9), v, decay, beta, starts) end, "one shape")
    assert.error_matches(function() ops.delta_rule(q, k, v, random("f32", { 180, 6, 9 }, 1), beta, starts) end, "heads, states")
    assert.error_matches(function() ops.delta_rule(q, k, v, decay, beta, ints { 0, 4 }) end, "starts end at 4")
  end)

  reference.every_instruction_set(it, pending)
end)
