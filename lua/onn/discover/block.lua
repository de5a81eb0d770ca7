-- What the matrices of one block are for, by their shapes alone: the assignment of attention and feed-forward that uses them best.
-- w is the width of the residual stream. Shapes are counted as (out, in); Conv1D layouts are turned round before.
local block = {}

-- Counts of the shapes that touch the stream: out[x] matrices (x, w), into[x] matrices (w, x), x may be w.
local function count(matrices, w)
  local out, into, square = {}, {}, 0
  for _, m in ipairs(matrices) do
    local a, b = m[1], m[2]
    if a == w and b == w then
      square = square + 1
    elseif b == w then
      out[a] = (out[a] or 0) + 1
    elseif a == w then
      into[b] = (into[b] or 0) + 1
    end
  end
  return { out = out, into = into, square = square, w = w }
end

local function sorted(t)
  local list = {}
  for x in pairs(t) do list[#list + 1] = x end
  table.sort(list)
  return list
end

-- Takes a matrix (x, w) or (w, x) from what is left; false if there is none.
local function take(left, way, x, n)
  n = n or 1
  if x == left.w then
    left.square = left.square - n
    return left.square >= 0
  end
  left[way][x] = (left[way][x] or 0) - n
  return left[way][x] >= 0
end

local function copy(c)
  local out, into = {}, {}
  for x, n in pairs(c.out) do out[x] = n end
  for x, n in pairs(c.into) do into[x] = n end
  return { out = out, into = into, square = c.square, w = c.w }
end

-- Every way to read attention: {query, kv, fused, used}.
local function attentions(c)
  local list = { { used = 0 } }
  local queries, outs = sorted(c.into), sorted(c.out)
  queries[#queries + 1], outs[#outs + 1] = c.w, c.w
  for _, q in ipairs(queries) do
    for _, x in ipairs(outs) do
      if x <= q and q % x == 0 then list[#list + 1] = { query = q, kv = x, used = 4 } end
      if x > q and (x - q) % 2 == 0 and (x - q) / 2 <= q and q % ((x - q) / 2) == 0 then
        list[#list + 1] = { query = q, kv = (x - q) / 2, fused = x, used = 2 }
      end
    end
  end
  return list
end

-- Every way to read the feed-forward: {inner, gated, fused, used}.
local function feeds(c)
  local list = { { used = 0 } }
  local inners = sorted(c.into)
  inners[#inners + 1] = c.w
  for _, x in ipairs(inners) do
    list[#list + 1] = { inner = x, used = 2 }
    list[#list + 1] = { inner = x, gated = true, used = 3 }
    list[#list + 1] = { inner = x, gated = true, fused = 2 * x, used = 2 }
  end
  return list
end

local function fits(c, a, f)
  local left = copy(c)
  if a.query then
    if not take(left, "into", a.query) then return nil end
    if a.fused then
      if not take(left, "out", a.fused) then return nil end
    elseif not (take(left, "out", a.query) and take(left, "out", a.kv, 2)) then
      return nil
    end
  end
  if f.inner then
    if not take(left, "into", f.inner) then return nil end
    if f.fused then
      if not take(left, "out", f.fused) then return nil end
    elseif not take(left, "out", f.inner, f.gated and 2 or 1) then
      return nil
    end
  end
  local unused = 0
  for _, n in pairs(left.out) do unused = unused + n end
  for _, n in pairs(left.into) do unused = unused + n end
  return unused
end

local MOST_SHAPES = 24 -- of a block, that are tried against each other

-- matrices: {{out, in}}; w: the width. Returns the likeliest reading {query, kv, inner, gated, qkv (rows of a fused one), gate_up,
-- used, of (matrices on the stream)} and how many others use as many matrices with other sizes.
function block.read(matrices, w)
  local c = count(matrices, w)
  local total = c.square
  for _, n in pairs(c.out) do total = total + n end
  for _, n in pairs(c.into) do total = total + n end
  if total == 0 or #sorted(c.out) + #sorted(c.into) > MOST_SHAPES then return nil, 0 end
  local best, rivals = nil, 0
  local function score(a, f)
    local s = a.used + f.used
    if a.query == w then s = s + 0.5 end -- as nearly everywhere
    if a.query and not a.fused then s = s + 0.1 end
    if f.inner and f.inner > w then s = s + 0.2 end
    if a.fused and f.fused then s = s + 0.05 end
    if a.query and f.inner then s = s + 0.3 end
    if a.kv and a.kv == a.query then s = s + 0.02 end
    return s
  end
  for _, a in ipairs(attentions(c)) do
    for _, f in ipairs(feeds(c)) do
      local unused = a.used + f.used > 0 and fits(c, a, f)
      if unused then
        local s = score(a, f) - 0.2 * unused
        local one = { query = a.query, kv = a.kv, qkv = a.fused, inner = f.inner, gated = f.gated, gate_up = f.fused,
          used = a.used + f.used, of = total, score = s }
        if not best or s > best.score then
          if best and best.used == one.used then rivals = rivals + 1 end
          best = one
        elseif one.used == best.used and (one.query ~= best.query or one.kv ~= best.kv or one.inner ~= best.inner) then
          rivals = rivals + 1
        end
      end
    end
  end
  return best, rivals
end

-- Experts whose names do not number them: a router (E, w), and E times two or three matrices beside the attention that `reading` found.
-- Returns their number, how many matrices each has, and their inner width; or nil.
function block.experts(matrices, w, reading)
  if not reading or not reading.query then return nil end
  local c = count(matrices, w)
  local left = copy(c)
  take(left, "into", reading.query)
  if reading.qkv then take(left, "out", reading.qkv) else
    take(left, "out", reading.query)
    take(left, "out", reading.kv, 2)
  end
  for _, e in ipairs(sorted(left.out)) do
    if left.out[e] == 1 and e > 1 and e < w then
      local total, alike, inner = left.square, left.square % e == 0, left.square > 0 and w or nil
      for _, way in ipairs { "out", "into" } do
        for x, n in pairs(left[way]) do
          if x ~= e and n > 0 then total, alike, inner = total + n, alike and n % e == 0, x end
        end
      end
      if alike and (total == 2 * e or total == 3 * e) then return e, total / e, inner end
    end
  end
end

return block
