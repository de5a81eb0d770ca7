-- A handler for xpcall: adds a traceback where a message says a line of a program (FILE:LINE:). One without a position tells of the world
-- outside, as a disk that fails in the middle of a run, and says all that is to be said; so does an error object.
return function(e)
  return type(e) == "string" and e:find ":%d+:" and debug.traceback(e, 2) or e
end
