-- A feed-forward part beside experts (Gemma 4): each with a norm on its output, added. The experts see the residual stream through a norm of
-- their own; the router sees it normed without weights and scaled, and weighs its choice by a factor of each expert. Switches: c.moe, c.inner.
local mlp = require "onn.arch.parts.mlp"
local moe = require "onn.arch.parts.moe"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"
local tensors = require "onn.core.tensor"

local both = {}

local norms = { "dense_out", "experts_in", "experts_out" }

function both.tensors(c, layer, add)
  local n = c.names
  mlp.tensors(c, layer, add)
  moe.tensors(c, layer, add)
  add.vector("router_scale", n.router_scale, { c.width })
  add.vector("expert_scales", n.expert_scales, { c.moe.experts })
  for _, role in ipairs(norms) do norm.tensors(c, add, role, n[role], c.width) end
end

local function route(c, w, raw, ctx)
  local x = ops.rms_norm(raw, tensors.new("f32", { c.width }):fill(1), c.eps)
  x = ops.affine(ops.mul(x, ops.view(w.router_scale, { 1, c.width })), c.width ^ -0.5, 0)
  local values, rows = moe.route(c, w, ctx.dtype == "f32" and x or ops.to(x, ctx.dtype))
  local scales = ops.embedding(ops.view(w.expert_scales, { c.moe.experts, 1 }), tensors.from_table(moe.flattened(rows), "i32"), "f32")
  return ops.mul(values, ops.view(scales, { raw:size(1), c.moe.per_token })), rows
end

-- x: the block's normed input; raw: the residual stream, f32 (tokens, width).
function both.forward(c, stage, x, carry, ctx, raw)
  local dense = norm.apply(c, stage, "dense_out", mlp.forward(c, stage, x, carry, ctx), "f32")
  local values, rows = route(c, stage.weights, raw, ctx)
  local y = moe.mixed(c, stage, norm.apply(c, stage, "experts_in", raw, ctx.dtype), values, rows, carry, ctx)
  return ops.add(dense, norm.apply(c, stage, "experts_out", y, "f32"))
end

return both
