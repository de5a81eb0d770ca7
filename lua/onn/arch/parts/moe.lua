-- A mixture of experts in place of a block's feed-forward part. c.moe: experts, per_token, inner (of each), score ("softmax" over all
-- experts, "sigmoid", or, of the chosen ones' logits, "logits" (a softmax) or "sigmoid_of_chosen"; "rivals": see there), normalize (the
-- chosen scores to a sum of 1), scale (of the result), groups and per_token_groups (experts are chosen among the best groups), correction (a
-- bias that counts for choosing only), router_bias, shared (inner width of what sees every token; 0: none), shared_gate (its output is
-- weighed by a sigmoid), mean_with_shared (half of both), out_bias (on the sum), scale_input (an expert sees its token times its weight,
-- instead of its output); stacked (the experts' weights are one tensor each: (experts, out, in), or with stored = "in_out" (experts, in,
-- out)).
local linear = require "onn.nn.linear"
local mlp = require "onn.arch.parts.mlp"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local moe = {}

local function named(c, expert)
  local n, prefix = c.names, c.names.expert:format(expert)
  return { gate = prefix .. n.expert_gate, up = prefix .. n.expert_up, down = prefix .. n.expert_down }
end

function moe.tensors(c, _, add)
  local m, n = c.moe, c.names
  add.matrix("router", n.router .. ".weight", { m.experts, c.width })
  if m.router_bias then add.vector("router_bias", n.router .. ".bias", { m.experts }) end
  if m.correction then add.buffer("correction", n.correction, m.correction_shape or { m.experts }) end
  if m.stacked then
    local function put(role, name, out, into)
      add.stacked(role, name, m.experts, out, into, "experts", m.stored)
      if m.expert_bias then add.vector(role .. "_bias", name .. "_bias", { m.experts, out }) end
    end
    put("experts_gate_up", n.experts_gate_up, (c.gated and 2 or 1) * m.inner, c.width)
    put("experts_down", n.experts_down, c.width, m.inner)
  else
    for e = 0, m.experts - 1 do mlp.add(c, add.expert(e), named(c, e), m.inner, ("expert%d_"):format(e)) end
  end
  if (m.shared or 0) > 0 then
    mlp.add(c, add, { gate = n.shared_gate, up = n.shared_up, down = n.shared_down, gate_up = n.shared_gate_up }, m.shared, "shared_")
    if m.shared_gate then add.linear("shared_weight", n.shared_weight, 1, c.width) end
  end
  if m.out_bias then add.vector("moe_bias", n.moe_bias, { c.width }) end
  if n.moe_norm then norm.tensors(c, add, "moe_norm", n.moe_norm, c.width) end
end

-- Scores of experts outside of the best groups fall below all others: a group counts as the sum of its group_score best experts.
local function within_groups(m, scores)
  local tokens, size = scores:size(1), m.experts / m.groups
  local grouped = ops.view(scores, { tokens * m.groups, size })
  local best = ops.topk(grouped, m.group_score or 1)
  local _, kept = ops.topk(ops.view(ops.sum(best), { tokens, m.groups }), m.per_token_groups)
  if tensors.is_dry() then return ops.add(scores, tensors.new("f32", { tokens, m.experts })) end
  local rows, mask = kept:totable(), {}
  for t = 1, tokens do
    local inside = {}
    for _, g in ipairs(rows[t]) do inside[g] = true end
    mask[t] = {}
    for e = 0, m.experts - 1 do mask[t][e + 1] = inside[math.floor(e / size)] and 0 or -1e30 end
  end
  return ops.add(scores, tensors.from_table(mask, "f32"))
end

-- What costs most: tokens evenly spread over all experts.
local function spread(m, tokens)
  local rows = {}
  for t = 1, tokens do
    rows[t] = {}
    for j = 1, m.per_token do rows[t][j] = ((t - 1) * m.per_token + j - 1) % m.experts end
  end
  return rows
end

-- The two best experts, each weighed by a softmax over those that come near it: (best - score) / max(|score|, best) <= margin; the second
-- without the first.
local function among_rivals(m, logits)
  if tensors.is_dry() then return ops.topk(ops.softmax(logits), 2), spread(m, logits:size(1)) end
  local _, best = ops.topk(logits, 2)
  local chosen, scores, masks, columns = best:totable(), logits:totable(), { {}, {} }, { {}, {} }
  for t, row in ipairs(scores) do
    for k = 1, 2 do
      local top, mask = row[chosen[t][k] + 1], {}
      for e, score in ipairs(row) do
        local far = (top - score) / math.max(math.abs(score), top) > m.margin or k == 2 and e == chosen[t][1] + 1
        mask[e] = far and -1e30 or 0
      end
      masks[k][t], columns[k][t] = mask, { chosen[t][k] }
    end
  end
  local values = {}
  for k = 1, 2 do
    local near = ops.softmax(ops.add(logits, tensors.from_table(masks[k], "f32")))
    values[k] = ops.pick(near, tensors.from_table(columns[k], "i32"))
  end
  return ops.cat(values[1], values[2], 2), chosen
end

-- Which experts each token goes to, and with which weight: f32 (tokens, per_token) and rows of numbers from 0.
function moe.route(c, w, x)
  local m = c.moe
  local logits = (ops.linear(x, w.router, w.router_bias, nil, nil, nil, nil, "f32"))
  if m.score == "rivals" then return among_rivals(m, logits) end
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
  return values, tensors.is_dry() and spread(m, x:size(1)) or indices:totable()
end

-- Rows of each expert's tokens, in the tokens' order: {tokens, places (in the list of all choices), starts (borders of sequences)}.
function moe.gathered(m, rows, starts)
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

-- Expert e of stacked weights as a layer; where they come by a ring, a list of matrices stands for them.
function moe.layer(weights, bias, e, stored)
  bias = bias and ops.select(bias, 1, e + 1)
  if type(weights) == "table" then
    local weight = weights[e + 1]
    return { weight = weight, bias = bias, out = weight.out, into = weight.into }
  end
  local weight = ops.select(weights, 1, e + 1)
  if stored == "in_out" then weight = ops.transpose(weight, 1, 2) end
  return { weight = weight, bias = bias, out = weight:size(1), into = weight:size(2) }
end

local function layers_of(c, w, e)
  local function one(role) return moe.layer(w[role], w[role .. "_bias"], e, c.moe.stored) end
  return { [c.gated and "gate_up" or "up"] = one "experts_gate_up", down = one "experts_down" }
end

-- x times f32 weights, in x's dtype.
local function weighed(x, weight)
  local dtype = x:dtype()
  if dtype == "f32" then return ops.mul(x, weight) end
  return ops.to(ops.mul(ops.to(x, "f32"), weight), dtype)
end

-- The numbers of rows, one after another.
function moe.flattened(rows)
  local list = {}
  for _, row in ipairs(rows) do for _, e in ipairs(row) do list[#list + 1] = e end end
  return list
end

-- ctx for the rows of one expert: their own numbers, so that a sample drops the same elements wherever its tokens go.
local function ctx_of(ctx, numbers, own)
  if not numbers then return ctx end
  local list = {}
  for i, t in ipairs(own.tokens) do list[i] = numbers[t + 1] end
  return setmetatable({ rows = tensors.from_table(list, "i64") }, { __index = ctx })
end

-- The sum of the chosen experts' outputs, each times its weight: f32 (tokens, width).
function moe.mixed(c, stage, x, values, rows, carry, ctx)
  local m, w, tokens = c.moe, stage.weights, x:size(1)
  local flat = ops.view(values, { tokens * m.per_token, 1 })
  local experts = moe.gathered(m, rows, tape.recording() and carry.starts)
  local numbers = ctx.training and ctx.rows and not m.stacked and (tensors.is_dry() and {} or ctx.rows:totable())
  if numbers and tensors.is_dry() then for t = 1, tokens do numbers[t] = t - 1 end end
  local sum
  for e = 0, m.experts - 1 do
    local own = experts[e]
    if own then
      local index, own_ctx = tensors.from_table(own.tokens, "i32"), ctx_of(ctx, numbers, own)
      local function run()
        local into, weight = ops.gather_rows(x, index), ops.gather_rows(flat, tensors.from_table(own.places, "i32"))
        if m.scale_input then into = weighed(into, weight) end
        local y = m.stacked and mlp.run(c, layers_of(c, w, e), into, own_ctx, "", "f32") or mlp.run(c, w, into, own_ctx, ("expert%d_"):format(e), "f32")
        if not m.scale_input then y = ops.mul(y, weight) end
        return ops.scatter_add_rows(y, index, tokens)
      end
      local y = own.starts and tape.with_starts(own.starts, run) or run()
      sum = sum and ops.add(sum, y) or y
    end
  end
  return sum
end

function moe.forward(c, stage, x, carry, ctx)
  local m, w = c.moe, stage.weights
  local values, rows = moe.route(c, w, x)
  local sum = moe.mixed(c, stage, x, values, rows, carry, ctx)
  if (m.shared or 0) > 0 then
    local y = mlp.run(c, w, x, ctx, "shared_", "f32")
    if m.shared_gate then y = ops.mul(y, ops.sigmoid(linear(w.shared_weight, x, ctx, "f32"))) end
    sum = ops.add(sum, y)
    if m.mean_with_shared then sum = ops.affine(sum, 0.5, 0) end
  end
  if m.out_bias then sum = ops.add(sum, ops.view(w.moe_bias, { 1, c.width })) end
  if c.names.moe_norm then sum = norm.apply(c, stage, "moe_norm", sum, "f32") end
  return sum
end

return moe
