-- Strict JSON: what is accepted, what is refused and how it is said, and text that comes back the same.
local json = require "onn.core.json"

local function refused(text, part)
  local value, message, code = json.decode(text, "file.json")
  assert.is_nil(value)
  assert.equal("format", code)
  assert.truthy(message:find("file.json", 1, true), message)
  assert.truthy(message:find(part, 1, true), message)
end

describe("json.decode", function()
  it("gives Lua values", function()
    local value = json.decode [[ {"a": [1, -2.5e3, true, false, null], "b": {"": "x"}, "A": "\u00e9\ud83d\ude00\n"} ]]
    assert.same({ 1, -2500, true, false, json.null }, { unpack(value.a) })
    assert.same({ [""] = "x" }, value.b)
    assert.equal("\195\169\240\159\152\128\n", value.A)
  end)

  it("gives scalars, numbers exactly, and passes over a byte order mark", function()
    assert.equal(1e15 + 1, json.decode "1000000000000001")
    assert.equal(0.1, json.decode "0.1")
    assert.equal(2 ^ 53, json.decode "9007199254740992")
    assert.is_true(json.decode "\239\187\191true")
  end)

  it("refuses what other parsers let through", function()
    refused('{"a":1,"a":2}', "'a' appears twice")
    refused('"\\u0000"', "\\u0000")
    refused('"a\0b"', "NUL")
    refused('{"a":1}\0', "NUL")
    refused('"\195("', "UTF-8")
    refused('"\237\160\128"', "UTF-8") -- a surrogate, encoded
    refused('"\192\128"', "UTF-8")     -- an overlong NUL
    refused('"\\ud800"', "surrogate")
    refused('"\\udc00\\ud800"', "surrogate")
    refused('"\\x41"', "escape")
    refused('"a\tb"', "control")
    refused("1e400", "too large")
    refused("01", "leading zero")
    refused("1.", "point")
    refused("1e", "exponent")
    refused("-", "digits")
    refused(("1"):rep(64), "63")
    refused("[1] 2", "after the end")
    refused("\1{}", "not JSON")
  end)

  it("refuses what is not JSON, with the line", function()
    for _, text in ipairs { "", " ", "nul", "[1,]", "{a:1}", "[1}", "'a'", "// x\n1", "NaN", "+1", ".5", "[", '{"a":}', '{"a"}', '"a' } do
      local value, message, code = json.decode(text, "file.json")
      assert.is_nil(value, text)
      assert.equal("format", code)
      assert.truthy(message:find "^file.json: line %d", message)
    end
    refused('{\n"a": 1,\n"b" 2}', "line 3")
  end)

  it("accepts 64 levels and no more", function()
    assert.is_table(json.decode(("["):rep(64) .. ("]"):rep(64)))
    refused(("["):rep(65) .. ("]"):rep(65), "64")
    refused(("["):rep(1e6), "64")
    refused(('{"a":'):rep(65), "64")
  end)

  it("finds a duplicate among many keys without taking long", function()
    local parts = {}
    for i = 1, 200000 do parts[i] = ('"model.layers.weight.%d":%d'):format(i, i) end
    local text = "{" .. table.concat(parts, ",")
    local began = os.clock()
    assert.equal(200000, json.decode(text .. "}")["model.layers.weight.200000"])
    assert.is_true(os.clock() - began < 5)
    refused(text .. ',"model.layers.weight.77":1}', "model.layers.weight.77")
  end)
end)

describe("json.encode", function()
  it("writes keys in order, arrays as arrays, empty tables as objects unless marked", function()
    assert.equal('{"a":[1,2],"b":{},"c":[],"d":null}', json.encode { d = json.null, c = json.array {}, b = {}, a = { 1, 2 } })
    assert.equal("[]", json.encode(setmetatable({}, json.array)))
    assert.equal("null", json.encode(nil))
  end)

  it("keeps empty arrays and nulls from one end to the other", function()
    local text = '{"a":[],"b":{},"c":[[],{}],"d":[null,1]}'
    assert.equal(text, json.encode(json.decode(text)))
  end)

  it("indents", function()
    assert.equal('{\n  "a": [\n    1,\n    {}\n  ],\n  "b": []\n}', json.encode({ a = { 1, {} }, b = json.array {} }, { pretty = true }))
  end)

  it("writes every double so that it reads back the same", function()
    local bits = { 0.1, 0.1 + 0.2, 1 / 3, 2 ^ 53 - 1, 2 ^ 53, 1e15, 123456789012345680, 5e-324, 1.7976931348623157e308, -0.5, 2e-4, 1e22, 3e8 }
    math.randomseed(1)
    for _ = 1, 2000 do bits[#bits + 1] = (math.random() - 0.5) * 10 ^ math.random(-300, 300) end
    for _, x in ipairs(bits) do assert.equal(x, (json.decode(json.encode(x)))) end
    assert.equal("[1000000000000000,9007199254740991,0.1,0.0002,-3]", json.encode { 1e15, 2 ^ 53 - 1, 0.1, 2e-4, -3 })
  end)

  it("escapes", function()
    assert.equal([["\"\\/\b\f\n\r\t\u0001é"]], json.encode '"\\/\b\f\n\r\t\1é')
    assert.equal('"a\239\191\189b"', json.encode "a\255b")
    assert.equal('"\239\191\189\239\191\189\239\191\189"', json.encode "\237\160\128")
    assert.equal('"\239\191\189"', json.encode "\226")
    assert.equal([["\u0000"]], json.encode "\0")
  end)

  it("refuses what has no JSON form", function()
    local cycle = {}
    cycle.cycle = cycle
    local bad = { ["not finite"] = 0 / 0, ["finite"] = { 1 / 0 }, ["function"] = print, ["holds itself"] = cycle,
      ["all strings"] = { 1, 2, x = 3 }, ["without gaps"] = { [1] = 1, [3] = 3 }, ["boolean"] = { [true] = 1 },
      ["not UTF-8"] = { ["\255"] = 1 } }
    for part, value in pairs(bad) do
      local ok, message = pcall(json.encode, value)
      assert.is_false(ok, part)
      assert.truthy(message:find(part, 1, true), message)
    end
  end)
end)
