-- CodeGen: GPT-J with q, k, v in one weight, of four parts [Q; V; K] each.
return {
  name = "codegen",
  model_types = { "codegen" },
  base = "gptj",
  derive = function(c, wrong)
    c.parallel, c.interleaved, c.head_bias, c.qkv = true, true, true, "four_parts"
    if c.heads % 4 ~= 0 then wrong[#wrong + 1] = ("'n_head' %d is no multiple of 4"):format(c.heads) end
  end,
  names = { qkv = "attn.qkv_proj" },
}
