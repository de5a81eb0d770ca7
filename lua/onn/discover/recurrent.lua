-- Recurrent layers by their shapes: each has a matrix (g H, in) and one (g H, H), with g = 4 gates for LSTM, 3 for GRU, 1 for plain RNN.
local recurrent = {}

local cells = { [4] = "lstm", [3] = "gru", [1] = "rnn" }

-- tensors of one or more layers (state left out). Returns {cell, hidden, rows, layers, input}, or nil if they are something else.
function recurrent.read(tensors)
  local rows, matrices, vectors, others, named = nil, {}, 0, {}, false
  for _, t in ipairs(tensors) do
    local s = t.shape
    if #s == 2 then
      if t.name:find "_hh" or t.name:find "recurrent" then named = s[2] end
      matrices[#matrices + 1] = s
      if not rows or s[1] > rows then rows = s[1] end
    elseif #s > 2 then
      return nil
    end
  end
  if #matrices < 2 then return nil end
  local columns, n = {}, 0
  for _, s in ipairs(matrices) do
    if s[1] == rows then
      n, columns[s[2]] = n + 1, (columns[s[2]] or 0) + 1
    else
      others[#others + 1] = s -- a projection (P, H)
    end
  end
  for _, t in ipairs(tensors) do
    if #t.shape == 1 then
      if t.shape[1] ~= rows then return nil end
      vectors = vectors + 1
    end
  end
  if n < 2 or n % 2 ~= 0 or (vectors ~= 0 and vectors ~= n and vectors ~= n / 2) then return nil end
  if #others > 0 and #others ~= n / 2 then return nil end
  local best
  for hidden, count in pairs(columns) do
    local from = #others > 0 and others[1][2] or hidden
    local gates = rows / from
    if count >= n / 2 and cells[gates] and (not named or hidden == named) and (gates > 1 or named or vectors == n)
      and (#others == 0 or others[1][1] == hidden) and (not best or count > best.count or count == best.count and gates > best.gates) then
      best = { count = count, gates = gates, cell = cells[gates], hidden = from, rows = rows, layers = n / 2 }
    end
  end
  if not best then return nil end
  for columns_of in pairs(columns) do if columns_of ~= best.hidden then best.input = math.max(best.input or 0, columns_of) end end
  best.input = best.input or best.hidden
  return best
end

return recurrent
