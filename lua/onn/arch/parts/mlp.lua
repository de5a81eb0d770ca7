-- The feed-forward part of a block: gated (down(act(gate) * up)) or plain (down(act(up))). Switches in c: gated, inner, activation,
-- gate_up (one weight of both, [gate; up], or with gate_up_order = "pairs" row by row), bias {gate, up, down}.
local linear = require "onn.nn.linear"
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

function mlp.tensors(c, layer, add) mlp.add(c, add, c.names, c.inners and c.inners[layer] or c.inner) end

-- x (tokens, width) -> (tokens, width) in `dtype`, by the weights whose roles begin with `mark`.
function mlp.run(c, w, x, ctx, mark, dtype)
  local up = w[mark .. "up"]
  if not c.gated then return linear(w[mark .. "down"], ops[c.activation_op](linear(up, x, ctx)), ctx, dtype) end
  local gate
  local both = w[mark .. "gate_up"]
  if both then
    local inner = both.out / 2
    local y = linear(both, x, ctx)
    if c.gate_up_order == "pairs" then
      y = ops.view(y, { x:size(1), inner, 2 })
      gate, up = ops.contiguous(ops.select(y, 3, 1)), ops.contiguous(ops.select(y, 3, 2))
    else
      gate, up = ops.split(y, { inner, inner })
    end
  else
    gate, up = linear(w[mark .. "gate"], x, ctx), linear(up, x, ctx)
  end
  return linear(w[mark .. "down"], ops.gate(gate, up, c.activation_op), ctx, dtype)
end

function mlp.forward(c, stage, x, _, ctx) return mlp.run(c, stage.weights, x, ctx, "", "f32") end

return mlp
