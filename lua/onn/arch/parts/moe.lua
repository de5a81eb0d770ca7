-- A mixture of experts in place of a block's feed-forward part. c.moe: experts, per_token, inner (of each), score ("softmax" over all
-- experts, "sigmoid", or, of the chosen ones' logits, "logits" (a softmax) or "sigmoid_of_chosen"), normalize (the chosen scores to a sum
-- of 1), scale (of the result), groups and per_token_groups (experts are chosen among the best groups), correction (a bias that counts for
-- choosing only), router_bias, shared (inner width of what sees every token; 0: none), shared_gate (its output is weighed by a sigmoid);
-- stacked (the experts' weights are one tensor each: (experts, out, in), or with stored = "in_out" (experts, in, out)).
local linear = require "onn.nn.linear"
local mlp = require "onn.arch.parts.mlp"
local ops = require "onn.ops"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local moe = { untiled = true }

local function named(c, expert)
  local n, prefix = c.names, c.names.expert:format(expert)
  return { gate = prefix .. n.expert_gate, up = prefix .. n.expert_up, down = prefix .. n.expert_down }
end

function moe.tensors(c, _, add)
  local m, n = c.moe, c.names
  add.matrix("router", n.router .. ".weight", { m.experts, c.width })
  if m.router_bias then add.vector("router_bias", n.router .. ".bias", { m.experts }) end
  if m.correction then add.vector("correction", n.correction, m.correction_shape or { m.experts }) end
  if m.stacked then
    local function put(role, name, out, into)
      add.matrix(role, name, m.stored == "in_out" and { m.experts, into, out } or { m.experts, out, into })
      if m.expert_bias then add.vector(role .. "_bias", name .. "_bias", { m.experts, out }) end
    end
    put("experts_gate_up", n.experts_gate_up, (c.gated and 2 or 1) * m.inner, c.width)
    put("experts_down", n.experts_down, c.width, m.inner)
  else
    for e = 0, m.experts - 1 do mlp.add(c, add.experts(), named(c, e), m.inner, ("expert%d_"):format(e)) end
  end
  if (m.shared or 0) > 0 then
    mlp.add(c, add, { gate = n.shared_gate, up = n.shared_up, down = n.shared_down, gate_up = n.shared_gate_up }, m.shared, "shared_")
    if m.shared_gate then add.linear("shared_weight", n.shared_weight, 1, c.width) end
  end
end

-- Scores of experts outside of the best groups become 0: a group counts as the sum of its group_score best experts.
local function within_groups(m, scores)
  local tokens, size = scores:size(1), m.experts / m.groups
  local grouped = ops.view(scores, { tokens * m.groups, size })
  local best = ops.topk(grouped, m.group_score or 1)
  local _, kept = ops.topk(ops.view(ops.sum(best), { tokens, m.groups }), m.per_token_groups)
  local rows, mask = kept:totable(), {}
  for t = 1, tokens do
    local inside = {}
    for _, g in ipairs(rows[t]) do inside[g] = true end
    mask[t] = {}
    for e = 0, m.experts - 1 do mask[t][e + 1] = inside[math.floor(e / size)] and 1 or 0 end
  end
  return ops.mul(scores, tensors.from_table(mask, "f32"))
end

-- Which experts each token goes to, and with which weight: f32 (tokens, per_token) and rows of numbers from 0.
local function route(c, w, x)
  local m = c.moe
  local logits = (ops.linear(x, w.router, w.router_bias, nil, nil, nil, nil, "f32"))
  local of_logits = m.score == "logits" or m.score == "sigmoid_of_chosen"
  local scores = m.score == "sigmoid" and ops.sigmoid(logits) or of_logits and logits or ops.softmax(logits)
  local choice = scores
  if w.correction then choice = tape.constant(ops.add, choice, ops.view(w.correction, { 1, m.experts })) end
  if (m.groups or 1) > 1 then choice = tape.constant(within_groups, m, choice) end
  local values, indices = ops.topk(choice, m.per_token)
  if choice ~= scores then values = ops.pick(scores, indices) end
  if m.score == "logits" then values = ops.softmax(values) elseif of_logits then values = ops.sigmoid(values) end
  if m.normalize then
    local total = ops.view(ops.sum(values), { values:size(1), 1 })
    values = ops.div(values, m.normalize_eps and ops.affine(total, 1, m.normalize_eps) or total)
  end
  if (m.scale or 1) ~= 1 then values = ops.affine(values, m.scale, 0) end
  return values, indices:totable()
end

-- Rows of each expert's tokens, in the tokens' order: {tokens, places (in the list of all choices), starts (borders of sequences)}.
local function gathered(m, rows, starts)
  local experts = {}
  for t, chosen in ipairs(rows) do
    for j, e in ipairs(chosen) do
      local own = experts[e]
      if not own then
        own = { tokens = {}, places = {} }
        experts[e] = own
      end
      own.tokens[#own.tokens + 1], own.places[#own.places + 1] = t - 1, (t - 1) * m.per_token + j - 1
    end
  end
  if not starts then return experts end
  local borders = starts:totable()
  for _, own in pairs(experts) do
    local list, at = { 0 }, 0
    for s = 2, #borders do
      while own.tokens[at + 1] and own.tokens[at + 1] < borders[s] do at = at + 1 end
      list[s] = at
    end
    own.starts = tensors.from_table(list, "i32")
  end
  return experts
end

-- One expert of stacked weights as layers.
local function layers_of(c, w, e)
  local m = c.moe
  local function one(role)
    local weight, bias = ops.select(w[role], 1, e + 1), w[role .. "_bias"]
    if m.stored == "in_out" then weight = ops.transpose(weight, 1, 2) end
    return { weight = weight, bias = bias and ops.select(bias, 1, e + 1), out = weight:size(1), into = weight:size(2) }
  end
  return { [c.gated and "gate_up" or "up"] = one "experts_gate_up", down = one "experts_down" }
end

function moe.forward(c, stage, x, carry, ctx)
  local m, w, tokens = c.moe, stage.weights, x:size(1)
  local values, rows = route(c, w, x)
  local flat = ops.view(values, { tokens * m.per_token, 1 })
  local experts = gathered(m, rows, tape.recording() and carry.starts)
  local sum
  for e = 0, m.experts - 1 do
    local own = experts[e]
    if own then
      local index = tensors.from_table(own.tokens, "i32")
      local function run()
        local into = ops.gather_rows(x, index)
        local y = m.stacked and mlp.run(c, layers_of(c, w, e), into, ctx, "", "f32") or mlp.run(c, w, into, ctx, ("expert%d_"):format(e), "f32")
        y = ops.mul(y, ops.gather_rows(flat, tensors.from_table(own.places, "i32")))
        return ops.scatter_add_rows(y, index, tokens)
      end
      local y = own.starts and tape.with_starts(own.starts, run) or run()
      sum = sum and ops.add(sum, y) or y
    end
  end
  if (m.shared or 0) > 0 then
    local y = mlp.run(c, w, x, ctx, "shared_", "f32")
    if m.shared_gate then y = ops.mul(y, ops.sigmoid(linear(w.shared_weight, x, ctx, "f32"))) end
    sum = ops.add(sum, y)
  end
  return sum
end

return moe
