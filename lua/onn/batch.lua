-- What a model takes: tokens of all sequences one after another, without padding.
--   {ids, positions, labels: i32 (tokens); starts: i32 (sequences + 1); rows: i64 (tokens), the tokens' own numbers for dropout;
--    longest: tokens of the longest sequence; supervised: labels that count}
local tensors = require "onn.core.tensor"

local batch = {}

-- From input_ids (rows, length), each row one sequence, and labels of the same shape (default: the ids themselves), which are
-- shifted here: token t is trained to give label t + 1. -100 is not counted. first_row numbers the rows for dropout. own: labels are
-- their own tokens' and stay where they are; without any there are none.
function batch.from_ids(input_ids, labels, first_row, own)
  local rows, length = input_ids:size(1), input_ids:size(2)
  local positions, starts, numbers, shifted = {}, { 0 }, {}, {}
  local from = (own and not labels) and {} or (labels or input_ids):to("i64"):totable()
  local supervised = 0
  for r = 1, rows do
    starts[r + 1] = r * length
    for t = 1, length do
      local label = -100
      if own then label = labels and from[r][t] or -100 elseif t < length then label = from[r][t + 1] end
      if label ~= -100 then supervised = supervised + 1 end
      positions[#positions + 1], shifted[#shifted + 1] = t - 1, label
      numbers[#numbers + 1] = ((first_row or 0) + r - 1) * length + t - 1
    end
  end
  return {
    ids = input_ids:contiguous():to("i32"):view { rows * length }, positions = tensors.from_table(positions, "i32"),
    labels = tensors.from_table(shifted, "i32"), starts = tensors.from_table(starts, "i32"),
    rows = tensors.from_table(numbers, "i64"), longest = length, supervised = supervised, tokens = rows * length,
  }
end

-- A batch of so many rows of one length for a dry run: shapes, no tokens.
function batch.example(rows, length)
  local tokens, starts = rows * length, {}
  for r = 0, rows do starts[r + 1] = r * length end
  local function of(dtype) return tensors.new(dtype, { tokens }) end
  return { ids = of "i32", positions = of "i32", labels = of "i32", starts = tensors.from_table(starts, "i32"), rows = of "i64",
    longest = length, supervised = tokens, tokens = tokens }
end

function batch.free(b)
  for _, t in pairs(b) do if tensors.is_tensor(t) then t:free() end end
end

return batch
