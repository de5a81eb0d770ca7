local json = require "onn.core.json"
local Jinja = require "onn.jinja"

local HERE = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read "*a"
  file:close()
  return content
end

local function render(text, variables)
  local template, message, code = Jinja.compile(text, "t")
  if not template then return nil, message, code end
  return template:render(variables)
end

describe("jinja, against the reference", function()
  -- made by fixtures/make_jinja.py with transformers' own environment
  local golden = assert(json.decode(read(HERE .. "fixtures/jinja.json")))
  for _, case in ipairs(golden.cases) do
    it(case.name, function()
      local variables = {}
      for name, value in pairs(case.variables) do variables[name] = value end
      variables.messages = golden.chats[case.chat]
      local text, message, code = render(golden.templates[case.template] or case.template, variables)
      if case.expected == json.null then
        assert.is_nil(text)
        assert.is_truthy(message:find "^t: line %d+: ")
        assert.is_string(code)
      else
        assert.are.equal(case.expected, text or message)
      end
    end)
  end
end)

describe("chat templates in the manner of published ones, against the reference,", function()
  -- made by fixtures/make_chats.py with transformers' own environment
  local golden = assert(json.decode(read(HERE .. "fixtures/chats.json")))
  local by_template = {}
  for _, case in ipairs(golden.cases) do
    local cases = by_template[case[1]] or {}
    by_template[case[1]], cases[#cases + 1] = cases, case
  end
  for name, cases in pairs(by_template) do
    it("agree: " .. name, function()
      local template = assert(Jinja.compile(golden.templates[name], "t"))
      for _, case in ipairs(cases) do
        local variables = { messages = golden.chats[case[2]] }
        for key, value in pairs(golden.variables[case[3]]) do variables[key] = value end
        local text, message = template:render(variables)
        local what = table.concat({ name, case[2], case[3] }, ", ")
        if case[4] == json.null then
          assert.is_nil(text, what)
          assert.is_truthy(message:find "^t: line %d+: ", message)
        else
          assert.are.equal(case[4], text or message, what)
        end
      end
    end)
  end
end)

describe("jinja", function()
  it("says where a template fails, and whose fault it is", function()
    local _, message, code = render("a\n\n{{ x.y }}")
    assert.are.equal("t: line 3: 'x' is undefined", message)
    assert.are.equal("format", code)
    _, message, code = render "{{ raise_exception('roles must alternate') }}"
    assert.are.equal("t: line 1: roles must alternate", message)
    assert.are.equal("argument", code)
    _, _, code = render "{% include 'other' %}"
    assert.are.equal("unsupported", code)
  end)

  it("takes null as none, empty arrays as lists and Lua tables as they look", function()
    assert.are.equal("True [] {} [1, 2] {'a': 1}", render("{{ n is none }} {{ l }} {{ d }} {{ a }} {{ m }}",
      { n = json.null, l = json.decode "[]", d = {}, a = { 1, 2 }, m = { a = 1 } }))
  end)

  it("keeps the order of keys it was told, and sorts others", function()
    assert.are.equal('{"z": 1, "a": 2}', render("{{ o | tojson }}", { o = Jinja.object { { "z", 1 }, { "a", 2 } } }))
    assert.are.equal('{"a": 2, "z": 1}', render("{{ o | tojson }}", { o = { z = 1, a = 2 } }))
  end)

  it("leaves the caller's tables alone", function()
    local messages = { { role = "user", content = "x" } }
    render("{% set messages = messages + [1] %}{{ messages[0].pop('role') }}", { messages = messages })
    assert.are.same({ { role = "user", content = "x" } }, messages)
  end)

  it("knows the day", function()
    assert.are.equal(os.date "%Y", render "{{ strftime_now('%Y') }}")
    assert.are.equal("*t", render "{{ strftime_now('*t') }}")
  end)

  local bombs = {
    "{{ 'a' * 10000000000 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}",
    "{{ " .. ("("):rep(10000) .. "1" .. (")"):rep(10000) .. " }}",
    "{{ 1" .. (" + 1"):rep(10000) .. " }}",
    "{{ 'a'" .. ("|upper"):rep(20000) .. " }}",
    ("{% if 1 %}"):rep(10000),
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 1000000).rfind('b' * 500000) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
  }
  for _, bomb in ipairs(bombs) do
    it("bounds " .. bomb:sub(1, 50), function()
      local started = os.clock()
      local text, message, code = render(bomb)
      assert.is_nil(text)
      assert.are.equal("memory", code, message)
      assert.is_true(os.clock() - started < 5)
    end)
  end
end)
