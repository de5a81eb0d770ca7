-- The last stage of a language model, of kind "head": logits multiplier * (x w^T + bias), capped, or the loss of each token, at once or in steps
-- while the weight passes in row tiles; the same bits either way.
--   vocabulary_head.new { input =, form =, starts = }
--     input(c, stage, carry, ctx) -> x (tokens, width) in the arithmetic's dtype, or nil where nothing is wanted of the head
--     form(c, stage)              -> bias f32 (vocabulary) or nil, multiplier, cap or nil
--     starts(carry)               -> borders of the sequences among x's rows
-- Returns forward(c, stage, carry, ctx) and {begin, part, finish}, as a net has them (onn.arch). The carry gets last_hidden (x, unless it has
-- one) and with ctx.labels nll (tokens), else logits f32 (tokens, vocabulary).
local copied = require "onn.arch.copied"
local core = require "onn.core.ops"
local ops = require "onn.ops"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local vocabulary_head = {}

local function scaled(logits, multiplier, cap)
  if multiplier ~= 1 then logits = core.affine(logits, multiplier, 0) end
  if cap then logits = core.affine(core.unary(core.affine(logits, 1 / cap, 0), "tanh"), cap, 0) end
  return logits
end

function vocabulary_head.new(of)
  local function forward(c, stage, carry, ctx)
    local x, weight = of.input(c, stage, carry, ctx), stage.weights.head
    if not x then return carry end
    local bias, multiplier, cap = of.form(c, stage)
    carry.last_hidden = carry.last_hidden or x
    if ctx.labels then
      carry.nll = ops.head_loss(x, weight, bias, ctx.labels, of.starts(carry), ctx.loss_scale, multiplier, cap)
    elseif ctx.decode then
      carry.logits = scaled(core.linear_decode(x, weight, bias, nil, nil, nil, "f32"), multiplier, cap)
    else
      carry.logits = scaled((ops.linear(x, weight, bias, nil, nil, nil, nil, "f32")), multiplier, cap)
    end
    return carry
  end

  local steps = {}

  function steps.begin(c, stage, carry, ctx)
    local out = copied(carry)
    local x = of.input(c, stage, carry, ctx)
    if not x then return out end
    local bias, multiplier, cap = of.form(c, stage)
    out.last_hidden = carry.last_hidden or x
    out.head_input, out.head_bias, out.head_multiplier, out.head_cap = x, bias, multiplier, cap
    if ctx.labels then
      out.loss = core.head_begin(x, c.vocabulary, tape.tracked(x))
    else
      out.logits = tensors.new("f32", { x:size(1), c.vocabulary })
    end
    return out
  end

  -- weight: the rows of the head from `first` on, counted from 0.
  function steps.part(_, carry, ctx, weight, first)
    local x, n = carry.head_input, weight:size(1)
    if not x then return end
    if ctx.labels then
      return core.head_part(carry.loss, x, weight, ctx.labels, first, carry.head_multiplier, carry.head_bias, carry.head_cap)
    end
    local bias, columns = carry.head_bias and carry.head_bias:narrow(1, first + 1, n), carry.logits:narrow(2, first + 1, n)
    if ctx.decode then
      core.linear_decode(x, weight, bias, nil, nil, nil, "f32", columns)
    else
      core.linear(x, weight, bias, nil, nil, nil, nil, "f32", columns)
    end
  end

  function steps.finish(_, carry, ctx)
    local out, x = copied(carry), carry.head_input
    out.head_input, out.head_bias, out.head_multiplier, out.head_cap = nil, nil, nil, nil
    if not x then return out end
    if ctx.labels then
      out.nll, out.loss = ops.head_end(x, carry.loss, ctx.labels, ctx.loss_scale, carry.head_multiplier, carry.head_cap), nil
    else
      out.logits = scaled(carry.logits, carry.head_multiplier, carry.head_cap)
      if out.logits ~= carry.logits then carry.logits:free() end
    end
    return out
  end

  return forward, steps
end

return vocabulary_head
