local program = require "onn.core.program"

describe("the demo's corpus", function()
  local corpus = dofile(program.home .. "/recipes/demo/corpus.lua")
  local made = corpus.make(7, 300)

  it("follows from its seed", function()
    assert.same(made, corpus.make(7, 300))
    assert.not_same(made.documents, corpus.make(8, 300).documents)
  end)

  it("asks about other people in the held-out questions", function()
    assert.equal(180, #made.train)
    assert.equal(60, #made.held_out)
    local asked = {}
    for _, row in ipairs(made.train) do asked[row.prompt:match "does (%u%l+)%W"] = true end
    for _, row in ipairs(made.held_out) do assert.is_nil(asked[row.prompt:match "does (%u%l+)%W"], row.prompt) end
  end)

  it("fills every template", function()
    for _, text in ipairs(made.documents) do assert.is_nil(text:find "[{}]", text) end
    for _, row in ipairs(made.train) do assert.is_nil((row.prompt .. row.completion):find "[{}]") end
  end)
end)
