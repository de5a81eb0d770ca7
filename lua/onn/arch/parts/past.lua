-- What a mixer with states reads of the tokens before: the borders of sequences, i32 (sequences + 1), and in generation its states by
-- name, f32 (sequences, ...), carried on in place. mixer.state(c) gives their shapes, {name = {...}}, for one sequence.
return function(stage, carry, ctx)
  if not ctx.cache then return carry.starts, {} end
  return ctx.cache:states(stage.index)
end
