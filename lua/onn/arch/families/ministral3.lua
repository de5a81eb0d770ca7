-- Ministral 3: mistral whose queries grow with their position, as Llama 4's.
local values = require "onn.arch.config"

return {
  name = "ministral3",
  model_types = { "ministral3" },
  base = "mistral",
  defaults = { eps = 1e-5, head_size = 128, positions = 262144 },
  absent = {},
  rotary = { llama_4_scaling_beta = true },
  derive = function(c, wrong, config)
    local given = type(config.rope_parameters) == "table" and config.rope_parameters or {}
    if values.check("llama_4_scaling_beta", given.llama_4_scaling_beta, values.number, wrong)
      and values.check("original_max_position_embeddings", given.original_max_position_embeddings, values.positive, wrong) then
      c.query_scale = { floor = given.original_max_position_embeddings, by = given.llama_4_scaling_beta, from = 0 }
    end
  end,
}
