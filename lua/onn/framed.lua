-- Texts as encoders take them: ids between the model's special tokens, cut so that these stay.
local framed = {}

-- ids(tokenizer, text, limit): a list of ids, at most `limit`, and whether it was cut.
function framed.ids(tokenizer, text, limit)
  local ids = tokenizer.core:encode(text, { special = true, add_special_tokens = true }):totable()
  if #ids <= limit then return ids, false end
  local around = tokenizer.core:encode("", { add_special_tokens = true })
  local behind = math.min(#around - #tokenizer:prefix(), limit)
  local cut = {}
  for t = 1, limit - behind do cut[t] = ids[t] end
  for t = #ids - behind + 1, #ids do cut[#cut + 1] = ids[t] end
  return cut, true
end

return framed
