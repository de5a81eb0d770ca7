-- A carry's shallow copy: a stage gives a new one, the old stays as it was.
return function(carry)
  local out = {}
  for k, v in pairs(carry) do out[k] = v end
  return out
end
