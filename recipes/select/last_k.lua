-- last_k: the later a block, the sooner it is trained. Gradients then stop at the lowest of them, which is what saves time.
return function(stages)
  local scores = {}
  for i, stage in ipairs(stages) do scores[i] = stage.index end
  return scores
end
