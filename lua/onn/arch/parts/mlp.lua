-- The feed-forward part of a block: gated (down(act(gate) * up)) or plain (down(act(up))). Switches in c: gated, inner, activation,
-- gate_up (one weight of both, [gate; up], or with gate_up_order = "pairs" row by row), bias {gate, up, down}, gate_scale and
-- down_scale (factors of these two products).
local linear = require "onn.nn.linear"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"

local mlp = {}

-- Tensors of one of `inner` width under `names` {gate, up, down, gate_up}; `mark` is put before the roles.
function mlp.add(c, add, names, inner, mark)
  local bias = c.bias
  mark = mark or ""
  if c.gated and c.gate_up then
    add.linear(mark .. "gate_up", names.gate_up, 2 * inner, c.width, bias.up)
  else
    if c.gated then add.linear(mark .. "gate", names.gate, inner, c.width, bias.gate) end
    add.linear(mark .. "up", names.up, inner, c.width, bias.up)
  end
  add.linear(mark .. "down", names.down, c.width, inner, bias.down)
end

function mlp.tensors(c, layer, add)
  local inner = c.inners and c.inners[layer] or c.inner
  if c.activation_op == "xielu" then
    for _, name in ipairs { "alpha_p", "alpha_n" } do add.vector(name, c.names.xielu .. "." .. name, { 1 }) end
    for _, name in ipairs { "beta", "eps" } do add.buffer(name, c.names.xielu .. "." .. name, {}) end
  end
  if c.names.down_norm then norm.tensors(c, add, "down_norm", c.names.down_norm, inner) end
  mlp.add(c, add, c.names, inner)
end

-- xIELU (arXiv 2411.13010): a_p x^2 + b x above zero, a_n (e^x - 1 - x) + b x below, a_p = softplus(alpha_p), a_n = b + softplus(alpha_n).
local function xielu(w, x)
  local dtype = x:dtype()
  if dtype ~= "f32" then x = ops.to(x, "f32") end
  local above = ops.relu(x)
  local below = ops.sub(x, above)
  local beta = ops.view(w.beta, { 1 })
  local curved = ops.mul(ops.square(above), ops.softplus(w.alpha_p))
  local falling = ops.mul(ops.sub(ops.affine(ops.exp(below), 1, -1), below), ops.add(ops.softplus(w.alpha_n), beta))
  local y = ops.add(ops.add(curved, falling), ops.mul(x, beta))
  return dtype == "f32" and y or ops.to(y, dtype)
end

-- What goes into the last product.
local function inside(c, w, x, ctx, mark)
  local up, both = w[mark .. "up"], w[mark .. "gate_up"]
  if not c.gated then
    local y = linear(up, x, ctx)
    return c.activation_op == "xielu" and xielu(w, y) or ops[c.activation_op](y)
  end
  if not both then
    local gate = linear(w[mark .. "gate"], x, ctx)
    if c.gate_scale then gate = ops.affine(gate, c.gate_scale, 0) end
    return ops.gate(gate, linear(up, x, ctx), c.activation_op)
  end
  local y, inner = linear(both, x, ctx), both.out / 2
  local gate, rest
  if c.gate_up_order == "pairs" then
    y = ops.view(y, { x:size(1), inner, 2 })
    gate, rest = ops.contiguous(ops.select(y, 3, 1)), ops.contiguous(ops.select(y, 3, 2))
  else
    gate, rest = ops.split(y, { inner, inner })
  end
  return ops.gate(gate, rest, c.activation_op)
end

-- x (tokens, width) -> (tokens, width) in `dtype`, by the weights whose roles begin with `mark`.
function mlp.run(c, w, x, ctx, mark, dtype) return linear(w[mark .. "down"], inside(c, w, x, ctx, mark), ctx, dtype) end

function mlp.forward(c, stage, x, _, ctx)
  local w = stage.weights
  if c.names.down_norm then return linear(w.down, norm.apply(c, stage, "down_norm", inside(c, w, x, ctx, ""), ctx.dtype), ctx, "f32") end
  local y = mlp.run(c, stage.weights, x, ctx, "", "f32")
  return c.down_scale and ops.affine(y, c.down_scale, 0) or y
end

return mlp
