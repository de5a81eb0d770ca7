-- Rules: how each operation runs and how its gradient runs back.
--   forward(s, i, ...)  -> outputs; i holds the input tensors, s what the backward will read (only if s.keep)
--   backward(s, dy, c)  -> one gradient per input, nil where there is none
-- c.wants(k): is a gradient of input k wanted; c.leaf(k): its gradient buffer (f32, added to) if it is trained;
-- c.old(k): a gradient of input k met before, which may be added to in place and returned; c.starts: borders of sequences.
local core = require "onn.core.ops"
local row_tiles = require "onn.row_tiles"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local rules = {}

-- The core's own methods: onn.tensor puts recorded ones in their place.
local raw = {}
for _, name in ipairs { "to", "view", "transpose", "narrow", "select", "expand", "contiguous", "clone" } do
  raw[name] = tensors.class[name]
end

-- The gradient of a broadcast operand: summed over the dimensions along which it was repeated.
local function unbroadcast(g, shape)
  local dims = g:shape()
  local lead = #dims - #shape
  for d = 1, #dims do
    local size = d > lead and shape[d - lead] or 1
    if size == 1 and dims[d] ~= 1 then
      local rest = g:transpose(d, #dims):contiguous()
      local kept = rest:shape()
      kept[#dims] = 1
      g = core.reduce(rest, "sum"):view(kept):transpose(d, #dims)
    end
  end
  return g:contiguous():view(shape)
end

local function keep(s, ...)
  if s.keep then for k = 1, select("#", ...) do s[k] = (select(k, ...)) end end
end

-- Where the gradient of parameter k, the tensor t, is added to: its leaf; of one that an operation made (1 + w, say) zeros, which are also
-- the second result, for the rule to give back.
local function parameter(c, k, t)
  local leaf = c.leaf(k)
  if leaf or not t or not c.wants(k) then return leaf end
  local own = tensors.zeros("f32", t:shape())
  return own, own
end

-- Slopes of these are functions of the value; those of the others, of the input alone, keep no value.
local by_value = { exp = true, sqrt = true, tanh = true, sigmoid = true }

local function unary(name)
  return {
    forward = function(s, i)
      local y = core.unary(i[1], name)
      keep(s, i[1], by_value[name] and y or i[1])
      return y
    end,
    backward = function(s, dy) return core.unary_backward(dy, s[1], s[2], name) end,
  }
end
for _, name in ipairs { "neg", "exp", "log", "sqrt", "abs", "square", "tanh", "sigmoid", "relu", "silu", "gelu", "gelu_tanh",
  "quick_gelu", "relu2", "relu6", "softplus", "hardswish", "hardsigmoid" } do
  rules[name] = unary(name)
end

local function binary(name, da, db)
  return {
    forward = function(s, i)
      keep(s, i[1], i[2])
      if s.keep then s.a, s.b = i[1]:shape(), i[2]:shape() end
      return core.binary(i[1], i[2], name)
    end,
    backward = function(s, dy, c)
      return c.wants(1) and unbroadcast(da(dy, s[1], s[2]), s.a) or nil, c.wants(2) and unbroadcast(db(dy, s[1], s[2]), s.b) or nil
    end,
  }
end
local function mul(a, b) return core.binary(a, b, "mul") end
local function div(a, b) return core.binary(a, b, "div") end
local function neg(a) return core.unary(a, "neg") end
rules.sub = binary("sub", function(dy) return dy end, neg)
rules.mul = binary("mul", function(dy, _, b) return mul(dy, b) end, function(dy, a) return mul(dy, a) end)
rules.div = binary("div", function(dy, _, b) return div(dy, b) end, function(dy, a, b) return neg(div(mul(dy, a), mul(b, b))) end)

-- Addition reads neither operand again, so it keeps none.
rules.add = {
  forward = function(s, i)
    if s.keep then s.a, s.b = i[1]:shape(), i[2]:shape() end
    return core.binary(i[1], i[2], "add")
  end,
  backward = function(s, dy, c)
    local same = #s.a == #s.b
    for d = 1, #s.a do same = same and s.a[d] == s.b[d] end
    if same then return dy, dy end
    return c.wants(1) and unbroadcast(dy, s.a) or nil, c.wants(2) and unbroadcast(dy, s.b) or nil
  end,
}

rules.affine = {
  forward = function(s, i, alpha, beta) s.alpha = alpha; return core.affine(i[1], alpha, beta) end,
  backward = function(s, dy) return core.affine(dy, s.alpha, 0) end,
}

rules.to = {
  forward = function(s, i, dtype) s.dtype = i[1]:dtype(); return raw.to(i[1], dtype) end,
  backward = function(s, dy) return dy:to(s.dtype) end,
}

rules.view = {
  forward = function(s, i, ...) s.shape = i[1]:shape(); return raw.view(i[1], ...) end,
  backward = function(s, dy) return dy:contiguous():view(s.shape) end,
}

rules.transpose = {
  forward = function(s, i, first, second) s.first, s.second = first, second; return raw.transpose(i[1], first, second) end,
  backward = function(s, dy) return dy:transpose(s.first, s.second):contiguous() end,
}

-- Parts of a tensor, whose gradients are zero elsewhere; those of a trained one are added where they belong.
for _, name in ipairs { "narrow", "select" } do
  rules[name] = {
    forward = function(s, i, ...) s.shape, s.where = i[1]:shape(), { ... }; return raw[name](i[1], ...) end,
    backward = function(s, dy, c)
      local leaf = c.leaf(1)
      if leaf then
        local part = raw[name](leaf, unpack(s.where))
        core.binary(part, dy:dtype() == "f32" and dy or dy:to "f32", "add", part)
        return nil
      end
      local dx = tensors.zeros(dy:dtype(), s.shape)
      raw[name](dx, unpack(s.where)):copy(dy)
      return dx
    end,
  }
end

rules.expand = {
  forward = function(s, i, ...) s.shape = i[1]:shape(); return raw.expand(i[1], ...) end,
  backward = function(s, dy) return unbroadcast(dy:contiguous(), s.shape) end,
}

for _, name in ipairs { "contiguous", "clone" } do
  rules[name] = { forward = function(_, i) return raw[name](i[1]) end, backward = function(_, dy) return dy end }
end

-- Splits the last dimension into parts of the given sizes: views, whose gradients are laid side by side again.
rules.split = {
  forward = function(s, i, sizes)
    local x, parts, at = i[1], {}, 1
    s.sizes, s.shape = sizes, x:shape()
    for k, size in ipairs(sizes) do parts[k], at = raw.narrow(x, #s.shape, at, size), at + size end
    return unpack(parts)
  end,
  backward = function(s, _, c)
    local any
    for k = 1, #s.sizes do any = any or c.dy[k] end
    local dx, at = tensors.new(any:dtype(), s.shape), 1
    for k, size in ipairs(s.sizes) do
      local part = dx:narrow(#s.shape, at, size)
      if c.dy[k] then part:copy(c.dy[k]) else part:fill(0) end
      at = at + size
    end
    return dx
  end,
}

-- a, b -> one after the other along a dimension
rules.cat = {
  forward = function(s, i, dimension)
    local a, b = i[1], i[2]
    local shape, first, second = a:shape(), a:size(dimension), b:size(dimension)
    s.dimension, s.first, s.second = dimension, first, second
    shape[dimension] = first + second
    local y = tensors.new(a:dtype(), shape)
    raw.narrow(y, dimension, 1, first):copy(a)
    raw.narrow(y, dimension, first + 1, second):copy(b)
    return y
  end,
  backward = function(s, dy)
    return dy:narrow(s.dimension, 1, s.first):contiguous(), dy:narrow(s.dimension, s.first + 1, s.second):contiguous()
  end,
}

-- y (rows) = sum or mean over the last dimension.
local function reduction(name)
  return {
    forward = function(s, i) s.shape = i[1]:shape(); return core.reduce(i[1], name) end,
    backward = function(s, dy)
      local lead = dy:shape()
      lead[#lead + 1] = 1
      local dx = dy:contiguous():view(lead):expand(s.shape):contiguous()
      return name == "mean" and core.affine(dx, 1 / s.shape[#s.shape], 0) or dx
    end,
  }
end
rules.sum, rules.mean = reduction "sum", reduction "mean"

rules.softmax = {
  forward = function(s, i) local y = core.softmax(i[1]); keep(s, y); return y end,
  backward = function(s, dy) return core.softmax_backward(dy, s[1]) end,
}

rules.matmul = {
  forward = function(s, i) keep(s, i[1], i[2]); return core.matmul(i[1], i[2]) end,
  backward = function(s, dy, c)
    return c.wants(1) and core.matmul(dy, s[2]:transpose(1, 2)) or nil, c.wants(2) and core.matmul(s[1]:transpose(1, 2), dy) or nil
  end,
}

-- table, ids -> rows of the table
rules.embedding = {
  forward = function(s, i, ids, dtype) s.ids, s.table = ids, i[1]; return core.embedding(i[1], ids, dtype) end,
  backward = function(s, dy, c)
    local dtable, own = parameter(c, 1, s.table)
    if dtable then core.embedding_backward(dtable, dy, s.ids) end
    return own
  end,
}

-- x (rows, width), ids i32 -> those rows of x
rules.gather = {
  forward = function(s, i, ids) s.ids, s.shape, s.dtype = ids, i[1]:shape(), i[1]:dtype(); return core.embedding(i[1], ids, s.dtype) end,
  backward = function(s, dy)
    local dx = tensors.zeros("f32", s.shape)
    core.embedding_backward(dx, dy, s.ids)
    return s.dtype == "f32" and dx or dx:to(s.dtype)
  end,
}

-- Borders of sequences among the rows of x: (tokens, heads, size) has `heads` rows to a token.
local function row_starts(x, starts)
  local shape = x:shape()
  if not starts or #shape < 3 then return starts end
  return core.binary(starts, tensors.from_table({ shape[2] }, "i32"), "mul")
end

-- x, w f32 (width), or (heads, width) for x (tokens, heads, width), or nil: no weight; y in dtype (nil: x's)
rules.rms_norm = {
  forward = function(s, i, eps, dtype)
    local y, rstd = core.rms_norm(i[1], i[2], eps, s.keep, dtype)
    keep(s, i[1], i[2], rstd)
    return y
  end,
  backward = function(s, dy, c)
    local dw, own = parameter(c, 2, s[2])
    return core.rms_norm_backward(dy, s[1], s[2], s[3], dw, row_starts(s[1], c.starts)), own
  end,
}

-- x, w, b as rms_norm's w, each may be nil; y in dtype (nil: x's)
rules.layer_norm = {
  forward = function(s, i, eps, dtype)
    local y, stats = core.layer_norm(i[1], i[2], i[3], eps, dtype)
    keep(s, i[1], i[2], stats)
    return y
  end,
  backward = function(s, dy, c)
    local dw, own = parameter(c, 2, s[2])
    return core.layer_norm_backward(dy, s[1], s[2], s[3], dw, c.leaf(3), row_starts(s[1], c.starts)), own
  end,
}

-- x (tokens, heads, size); table {cos=, sin=, interleaved=}; dtype of the result, x's if absent. Its gradient stays in dy's dtype.
rules.rope = {
  forward = function(s, i, angles, positions, dtype)
    s.angles, s.positions = angles, positions
    return core.rope(i[1], angles.cos, angles.sin, positions, angles.interleaved, 1, dtype)
  end,
  backward = function(s, dy) return core.rope(dy, s.angles.cos, s.angles.sin, s.positions, s.angles.interleaved, -1) end,
}

-- q, k (tokens, heads, size), v (tokens, heads, its own size); keys and values may have fewer heads, and come from other tokens than
-- queries (key_starts). The mask holds starts, causal, window (keys seen back, itself included; 0 or nil: all), scale, and what a family adds:
--   cap    scores become cap * tanh(scale * score / cap)
--   bias   f32 (heads, distances), added to scaled (and capped) scores: entry `zero` (from 0) is for the query's own key, the one after it for
--          the next key; distances beyond the table's ends take the ends' entries (ALiBi, T5's relative positions, made into a table)
--   sinks  f32 (heads): a logit more per head, which takes its share of the softmax and has no value (gpt-oss)
--   chunk  with causal: only keys of the same run of `chunk` tokens, counted from the sequence's start (llama 4)
-- bias and sinks get no gradient.
rules.attention = {
  forward = function(s, i, mask)
    local keys = mask.key_starts or mask.starts
    for _, name in ipairs { "bias", "sinks" } do
      if s.keep and mask[name] and tape.tracked(mask[name]) then error(("attention: '%s' cannot be trained"):format(name), 0) end
    end
    local y, lse = core.attention(i[1], i[2], i[3], mask.starts, keys, mask.causal, mask.window or 0, mask.scale, s.keep, mask)
    keep(s, i[1], i[2], i[3], y, lse)
    s.mask, s.starts, s.bias, s.sinks = mask, mask.starts, mask.bias, mask.sinks -- named, so that they are kept
    return y
  end,
  backward = function(s, dy)
    local m = s.mask
    return core.attention_backward(dy, s[4], s[5], s[1], s[2], s[3], m.starts, m.key_starts or m.starts, m.causal, m.window or 0, m.scale, m)
  end,
}

-- x (rows, width), k -> values (rows, k) and their columns, i32 (rows, k): the k largest, largest first, equals in their order. Only the
-- values take a gradient.
rules.topk = {
  forward = function(s, i, k)
    local values, index = core.topk(i[1], k)
    s.index, s.width = index, i[1]:size(-1)
    return values, index
  end,
  backward = function(s, dy) return dy and core.pick_backward(dy, s.index, s.width) end,
}

-- x (rows, width), index i32 (rows, k) -> (rows, k): those columns of each row
rules.pick = {
  forward = function(s, i, index) s.index, s.width = index, i[1]:size(-1); return core.pick(i[1], index) end,
  backward = function(s, dy) return core.pick_backward(dy, s.index, s.width) end,
}

-- Row sums by index: y (rows, width) with y[index[n]] = the sum of x[n], in their order and in f32.
local function scattered(x, index, rows)
  local sum = tensors.zeros("f32", { rows, x:size(2) })
  core.embedding_backward(sum, x, index)
  return x:dtype() == "f32" and sum or sum:to(x:dtype())
end

-- x (rows, width), index i32 (n), from 0 -> (n, width): those rows
rules.gather_rows = {
  forward = function(s, i, index) s.index, s.rows = index, i[1]:size(1); return core.embedding(i[1], index, i[1]:dtype()) end,
  backward = function(s, dy) return scattered(dy, s.index, s.rows) end,
}

-- x (n, width), index i32 (n), rows -> (rows, width): each row the sum of what has its number, in order; zeros where nothing has
rules.scatter_add_rows = {
  forward = function(s, i, index, rows) s.index = index; return scattered(i[1], index, rows) end,
  backward = function(s, dy) return core.embedding(dy, s.index, dy:dtype()) end,
}

-- Tensors of one dtype and width, one after another: ops.concat_rows { a, b, ... }, (rows, width) each.
rules.concat_rows = {
  forward = function(s, i)
    local rows, at = 0, 1
    s.rows = {}
    for k = 1, i.n do s.rows[k] = i[k]:size(1); rows = rows + s.rows[k] end
    local y = tensors.new(i[1]:dtype(), { rows, i[1]:size(2) })
    for k = 1, i.n do
      if s.rows[k] > 0 then y:narrow(1, at, s.rows[k]):copy(i[k]) end
      at = at + s.rows[k]
    end
    return y
  end,
  backward = function(s, dy, c)
    local parts, at = {}, 1
    for k, n in ipairs(s.rows) do
      if c.wants(k) then parts[k] = dy:narrow(1, at, n):clone() end
      at = at + n
    end
    return unpack(parts, 1, #s.rows)
  end,
}

-- x f32 (tokens, channels), w f32 (channels, size), bias f32 (channels) or nil -> f32: each channel's own causal convolution within each
-- sequence of `starts`. state f32 (sequences, size - 1, channels): what came before, carried on in place, for inference.
rules.causal_conv = {
  forward = function(s, i, starts, state)
    keep(s, i[1], i[2])
    s.starts = starts
    return core.causal_conv(i[1], i[2], i[3], starts, state)
  end,
  backward = function(s, dy, c)
    local dw, own = parameter(c, 2, s[2])
    return core.causal_conv_backward(dy, s[1], s[2], s.starts, dw, c.leaf(3)), own
  end,
}

-- x f32 (tokens, heads * size), dt f32 (tokens, heads), b, c f32 (tokens, groups, states), a_log f32 (heads, states) or (heads, 1), bias of
-- dt and d f32 (heads) or nil -> y f32, x's shape: the selective scan of kernels/ops.def, states zero where a sequence begins.
-- options {starts=, low=, high= (limits of steps), state= f32 (sequences, channels, states), carried on in place, for inference}
rules.scan = {
  forward = function(s, i, o)
    keep(s, i[1], i[2], i[3], i[4], i[5], i[6], i[7])
    s.options, s.starts = o, o.starts
    return core.scan(i[1], i[2], i[3], i[4], i[5], i[6], i[7], o.starts, o.low, o.high, o.state)
  end,
  backward = function(s, dy, c)
    local o = s.options
    local dx, ddt, db, dc = core.scan_backward(dy, s[1], s[2], s[3], s[4], s[5], s[6], s[7], s.starts, o.low, o.high, c.leaf(5), c.leaf(7))
    if c.leaf(6) then core.sum_rows(c.leaf(6), ddt, s.starts) end
    return dx, ddt, db, dc
  end,
}

-- q, k f32 (tokens, groups, states), v f32 (tokens, heads * size), decay f32 (tokens, heads, 1 or states), logarithms, beta f32 (tokens,
-- heads) -> y f32, v's shape: the gated delta rule of kernels/ops.def, states zero where a sequence begins. state f32 (sequences, channels,
-- states): carried on in place, for inference.
rules.delta_rule = {
  forward = function(s, i, starts, state)
    keep(s, i[1], i[2], i[3], i[4], i[5])
    s.starts = starts
    return core.delta_rule(i[1], i[2], i[3], i[4], i[5], starts, state)
  end,
  backward = function(s, dy) return core.delta_rule_backward(dy, s[1], s[2], s[3], s[4], s[5], s.starts) end,
}

-- g, u -> gate(g) * u; "swiglu_oai" also clamps both and adds 1 to u (kernels/ops.def)
rules.gate = {
  forward = function(s, i, name) keep(s, i[1], i[2]); s.name = name; return core.gate(i[1], i[2], name) end,
  backward = function(s, dy) return core.gate_backward(dy, s[1], s[2], s.name) end,
}

-- x, w (or one of onn.row_tiles), bias, a, b, and the adapter's own input (nil: x). The adapter's part is added before y's single rounding.
rules.linear = {
  forward = function(s, i, scale, dtype)
    local x, w, a = i[1], i[2], i[4]
    local y, h = row_tiles.products(w).linear(x, w, i[3], a, i[5], scale, i[6], dtype)
    if s.keep then
      s.w, s.bias, s.a, s.b, s.h, s.apart, s.scale, s.into = w, i[3], a, i[5], h, i[6], scale, x:dtype()
      if a and not i[6] or tape.tracked(w) or i[3] and tape.tracked(i[3]) then s.x = x end -- read again only for what is trained
    end
    return y
  end,
  backward = function(s, dy, c)
    if dy:dtype() ~= s.into then dy = dy:to(s.into) end
    local dx, dh, dropped = row_tiles.products(s.w).linear_backward(dy, s.w, s.a, s.b, s.scale, c.old(1), s.apart ~= nil, not c.wants(1))
    if s.a then core.lora_backward(c.leaf(4), c.leaf(5), dh, dy, s.h, s.apart or s.x, s.b, s.scale, row_starts(dy, c.starts)) end
    local dw, own_w = parameter(c, 2, s.w)
    local dbias, own_bias = parameter(c, 3, s.bias)
    if dw or dbias then core.linear_backward_weight(dw, dbias, dy, s.x, row_starts(dy, c.starts)) end
    return dx, own_w, own_bias, nil, nil, dropped
  end,
}

-- The counters are token rows' own numbers, so a sample drops the same elements wherever it lies.
rules.dropout = {
  forward = function(s, i, p, random, rows)
    s.p, s.random, s.rows = p, random, rows
    return core.dropout(i[1], p, random.seed, random.site, random.counter, rows)
  end,
  backward = function(s, dy) return core.dropout(dy, s.p, s.random.seed, s.random.site, s.random.counter, s.rows) end,
}

-- x, w, bias (f32, vocabulary; or nil) -> nll f32 (tokens) of logits multiplier * (x w^T + bias), capped: cap * tanh(logit / cap) if cap is
-- given. The gradient is made on the way forward, for d(nll) = scale everywhere; dy is not read again.
rules.head_loss = {
  forward = function(s, i, labels, starts, scale, multiplier, cap)
    local function leaf(k) return s.keep and i[k] and tape.gradient(i[k]) or nil end
    local nll, dx = core.head_loss(i[1], i[2], labels, starts, scale, multiplier, s.keep, leaf(2), i[3], cap, leaf(3))
    s.dx = dx
    return nll
  end,
  backward = function(s) return s.dx end,
}

-- The same where the weight passed in parts: x, and a state of core.head_begin that has seen all of them. The state's tensors are freed.
rules.head_end = {
  forward = function(s, i, state, labels, scale, multiplier, cap)
    local nll, dx = core.head_end(state, i[1], labels, scale, multiplier, s.keep, cap)
    s.dx = dx
    return nll
  end,
  backward = function(s) return s.dx end,
}

-- logits -> nll (rows)
rules.cross_entropy = {
  forward = function(s, i, labels) keep(s, i[1]); s.labels = labels; return (core.cross_entropy(i[1], labels, 1, false)) end,
  backward = function(s, dy)
    local _, dx = core.cross_entropy(s[1], s.labels, 1, true)
    local shape = dx:shape()
    for d = 1, #shape do shape[d] = d == #shape and 1 or shape[d] end
    local scale = dy:dtype() == dx:dtype() and dy or dy:to(dx:dtype())
    return core.binary(dx, scale:view(shape), "mul")
  end,
}

-- logits, labels (i32), scale -> nll (rows), 0 where the label is -100. As in head_loss, the gradient, scale * d(nll), is made on the way
-- forward; dy is not read.
rules.class_loss = {
  forward = function(s, i, labels, scale)
    local nll, dx = core.cross_entropy(i[1], labels, scale, s.keep)
    s.dx = dx
    return nll
  end,
  backward = function(s) return s.dx end,
}

-- x, w, bias, projection (LSTM), and an adapter's a and b on w, of one direction of a recurrent layer: {cell, reverse, scale (the
-- adapter's)}; starts; state: {first, first_cell} or nil. Gives y, and the state after each sequence, last and last_cell, through which
-- no gradient goes.
rules.recurrent = {
  forward = function(s, i, layer, starts, state)
    local w, a, b = i[2], i[5], i[6]
    if a then -- W + scale B A once: the steps are many
      local change = core.affine(core.matmul(b, a), layer.scale, 0)
      w = core.binary(w:to "f32", change, "add", change)
    end
    local first, first_cell = state and state.first, state and state.first_cell
    local y, last, last_cell, kept, cells = core.recurrent(i[1], w, i[3], i[4], starts, first, first_cell, layer.cell, layer.reverse, s.keep)
    if s.keep then
      s.layer, s.w, s.bias, s.projection, s.a, s.b, s.borders, s.first, s.first_cell = layer, w, i[3], i[4], a, b, starts, first, first_cell
      s.y, s.kept, s.cells = raw.view(y, y:shape()), kept, cells -- y itself goes when the next stage is done with it
    end
    return y, last, last_cell
  end,
  backward = function(s, dy, c)
    local layer, weights = s.layer, (c.leaf(2) or c.leaf(3) or c.leaf(4) or s.a) ~= nil
    local dx, dstate, previous, projected, dout = core.recurrent_backward(dy, s.w, s.bias, s.projection, s.borders, s.first, s.first_cell,
      layer.cell, layer.reverse, s.y, s.kept, s.cells, weights)
    if c.leaf(2) or c.leaf(3) then core.linear_backward_weight(c.leaf(2), c.leaf(3), dstate, previous, c.starts) end
    if c.leaf(4) then core.linear_backward_weight(c.leaf(4), nil, dout, projected, c.starts) end
    if s.a then
      local _, dh = core.linear_backward(dstate, s.w, s.a, s.b, layer.scale, nil, false, true)
      core.lora_backward(c.leaf(5), c.leaf(6), dh, dstate, (core.linear(previous, s.a)), previous, s.b, layer.scale, c.starts)
    end
    return dx
  end,
}

-- nll (rows) as a loss whose gradient is `scale` everywhere, however it came about.
rules.loss = {
  forward = function(s, i, scale) s.shape, s.scale = i[1]:shape(), scale; return raw.clone(i[1]) end,
  backward = function(s) return tensors.new("f32", s.shape):fill(s.scale) end,
}

-- x, w, bias
rules.conv = {
  forward = function(s, i, options) keep(s, i[1], i[2]); s.options = options or {}; return core.conv(i[1], i[2], i[3], s.options) end,
  backward = function(s, dy, c)
    return core.conv_backward(dy:contiguous(), s[1], s[2], s.options, c.wants(1), c.leaf(2), c.leaf(3))
  end,
}

rules.pool = {
  forward = function(s, i, options)
    local y, index = core.pool(i[1], options, s.keep and not options.average)
    keep(s, i[1], index)
    s.options = options
    return y
  end,
  backward = function(s, dy) return core.pool_backward(dy:contiguous(), s[2], s[1], s.options) end,
}


-- x -> averages on a grid of rows x columns
rules.adaptive_pool = {
  forward = function(s, i, rows, columns) s.h, s.w = i[1]:size(3), i[1]:size(4); return core.adaptive_pool(i[1], rows, columns) end,
  backward = function(s, dy) return core.adaptive_pool_backward(dy:contiguous(), s.h, s.w) end,
}

-- x, w, b; mean and variance are the running statistics, which how.update moves (see core.batch_norm)
rules.batch_norm = {
  forward = function(s, i, mean, variance, how)
    local y, stats = core.batch_norm(i[1], i[2], i[3], mean, variance, how)
    keep(s, i[1], i[2], stats)
    s.batch = how.batch
    return y
  end,
  backward = function(s, dy, c)
    return core.batch_norm_backward(dy:contiguous(), s[1], s[2], s[3], s.batch, c.wants(1), c.leaf(2), c.leaf(3))
  end,
}

return rules
