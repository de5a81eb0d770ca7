-- The safetensors reader and the store against files built here byte by byte: every rule of the format, and what attacks try.
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local run, shell, write, quote = support.run, support.shell, support.write, support.quote

-- Under AddressSanitizer neither address space nor heap is a measure: it reserves terabytes and pads every block.
local sanitized = (os.getenv "ASAN_OPTIONS" or "") ~= ""
local folder, count
local function path(name)
  count = count + 1
  return ("%s/%d-%s"):format(folder, count, name or "m.safetensors")
end

-- The 8 bytes of a length, least significant first.
local function word(n)
  local bytes = {}
  for i = 1, 8 do bytes[i], n = string.char(n % 256), math.floor(n / 256) end
  return table.concat(bytes)
end

local function bytes(header, data) return word(#header) .. header .. (data or "") end
local function file(header, data) return write(path(), bytes(header, data)) end

local function refused(name, pattern, code)
  local store, message, got = stores.open(name)
  assert.is_nil(store, "opened " .. name)
  assert.truthy(message:find(name, 1, true), message)
  assert.matches(pattern, message)
  assert.is_nil(message:find "\n", message)
  assert.equal(code or "format", got, message)
end

local function one(shape, from, to, dtype)
  return ('{"w":{"dtype":"%s","shape":%s,"data_offsets":[%s,%s]}}'):format(dtype or "F32", shape, from, to)
end

setup(function() folder, count = support.scratch(), 0 end)
teardown(support.scratch_remove)

describe("a safetensors file", function()
  it("is read as written, whatever the alignment", function()
    local store = assert(stores.open(file('{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"__metadata__":{"k":"v"},'
      .. '"a":{"shape":[2],"dtype":"F32","data_offsets":[3,11]},"s":{"dtype":"I64","shape":[],"data_offsets":[11,19]},'
      .. '"e":{"dtype":"BF16","shape":[4,0],"data_offsets":[11,11]}}   ', "\1\2\3\0\0\128\63\0\0\192\255" .. word(7))))
    assert.same({ "a", "b", "e", "s" }, store:names())
    assert.same({ k = "v" }, store:metadata())
    assert.same({ 1, 2, 3 }, store:read("b"):totable())
    local a = store:read("a"):totable()
    assert.equal(1, a[1])
    assert.is_true(a[2] ~= a[2]) -- a NaN's payload is data like any other
    assert.equal(7, store:read("s"):item())
    assert.equal(0, store:read("e"):numel())
    assert.equal(11, store:info("s").bytes + store:info("b").bytes)
    store:close()
    assert.error_matches(function() store:names() end, "closed")
  end)

  it("holds at least a length and a header", function()
    refused(write(path(), ""), "0 bytes are too few")
    refused(write(path(), ("\1"):rep(7)), "7 bytes are too few")
    refused(write(path(), word(0)), "begin with '{'")
    local all = {}
    for i = 1, 255 do all[i] = string.char(i) end
    refused(write(path(), table.concat(all)), "announce a header of")
    refused(write(path(), "\60\0\0\0\0\255\255\255" .. ("x"):rep(60)), "header of 1844674%d+ bytes, the file has 68")
    refused(write(path(), ("\255"):rep(8)), "18446744073709551615 bytes")
    refused(write(path(), ("\255"):rep(7) .. "\127{}"), "the file has 10")
    local whole = bytes(one("[1]", 0, 4), "abcd")
    assert(stores.open(write(path(), whole))):close()
    for cut = 1, #whole - 1 do
      local store, message = stores.open(write(folder .. "/cut", whole:sub(1, cut)))
      assert.is_nil(store, cut)
      assert.truthy(message:find("/cut", 1, true))
    end
  end)

  it("has a header of strict JSON", function()
    refused(file "[]", "begin with '{'")
    refused(file ' {}', "begin with '{'")
    refused(file "\239\187\191{}", "begin with '{'")
    refused(file '{"w":', "JSON")
    refused(file '{"w":{}}', "no dtype")
    refused(file '{"w":[]}', "object is expected")
    refused(file '{"w":1}', "object is expected")
    refused(file "{} {}", "after the end")
    refused(file "{}\0", "NUL")
    refused(file '{"a\0b":1}', "NUL")
    refused(file '{"a\\u0000b":1}', "u0000")
    refused(file '{"\255":1}', "UTF%-8")
    refused(file '{"\237\160\128":1}', "UTF%-8")
    refused(file('{"w":' .. ("["):rep(100) .. ("]"):rep(100) .. "}"), "nested deeper")
    refused(file(("{\"a\":"):rep(1e5)), "nested deeper")
    refused(file(one("[1e400]", 0, 4), "abcd"), "too large")
    refused(file(one("[1]", 0, 4):sub(1, -2) .. "," .. one("[1]", 0, 4):sub(2), "abcd"), "'w' appears twice")
    refused(file('{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,4]}}', "abcd"), "'dtype' appears twice")
    refused(file '{"__metadata__":[]}', "strings to strings")
    refused(file '{"__metadata__":{"a":1}}', "'a' is not a string")
    refused(file '{"__metadata__":{"a":"1","a":"2"}}', "twice")
    assert(stores.open(file '{"__metadata__":{}}')):close()
    assert(stores.open(file "{}")):close()
  end)

  it("has tensors of a known dtype whose shape and place agree", function()
    refused(file(one("[1]", 0, 4, "F33"), "abcd"), "'w': unknown dtype 'F33'")
    refused(file(one("[1]", 0, 4, "f32"), "abcd"), "unknown dtype 'f32'")
    refused(file('{"w":{"dtype":null,"shape":[1],"data_offsets":[0,4]}}', "abcd"), "'w' has no dtype")
    refused(file('{"w":{"dtype":"F32","data_offsets":[0,4]}}', "abcd"), "'w' has no shape")
    refused(file(one("4", 0, 4), "abcd"), "no shape")
    refused(file(one('["1"]', 0, 4), "abcd"), "list of integers")
    refused(file(one("[1.5]", 0, 4), "abcd"), "not written as an integer")
    refused(file(one("[1.0]", 0, 4), "abcd"), "not written as an integer")
    refused(file(one("[1]", 0, "4e0"), "abcd"), "not written as an integer")
    refused(file(one("[-1]", 0, 4), "abcd"), "%-1 is not an integer in 0..2%^48%-1")
    refused(file(one("[-0]", 0, 0)), "not an integer in")
    refused(file(one("[281474976710656]", 0, 4), "abcd"), "281474976710656 is not")
    refused(file(one("[1,1,1,1,1,1,1,1,1]", 0, 4), "abcd"), "more than 8 dimensions")
    refused(file(one("[1000000]", 0, 4), "abcd"), "its shape needs 1000000 elements of F32, its offsets hold 4 bytes")
    refused(file(one("[]", 0, 8), "abcdefgh"), "needs 1 elements")
    refused(file(one("[1]", 0, 4):gsub("%[0,4%]", "[0]"), "abcd"), "two integers")
    refused(file(one("[1]", 0, 4):gsub("%[0,4%]", "[0,4,4]"), "abcd"), "two integers")
    refused(file(one("[1]", -4, 0), "abcd"), "two integers")
    refused(file(one("[1]", '"0"', 4), "abcd"), "two integers")
    refused(file(one("[1]", 4, 0), "abcd"), "'w' lies at 4..0")
    refused(file(one("[1]", 0, "9007199254740993"), "abcd"), "two integers")
  end)

  it("has no shape whose product wraps", function()
    for _, shape in ipairs { "[2,18446744073709551614]", "[2,9223372036854775807]", "[4194305,4194305,211106198978564]",
      "[281474976710655,281474976710655]", "[65536,65536,65536,65536]", "[0,281474976710655,281474976710655,281474976710655,2]" } do
      local store, message = stores.open(file(one(shape, 0, 4), "abcd"))
      assert.is_nil(store, shape)
      assert.matches("tensor 'w'", message)
    end
  end)

  it("has neither holes nor overlaps nor bytes that belong to nothing", function()
    local function two(a, b)
      return ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]},"b":{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]}}'):format(
        a, a + 4, b, b + 4)
    end
    assert(stores.open(file(two(4, 0), ("x"):rep(8)))):close()
    refused(file(two(0, 0), ("x"):rep(4)), "neither overlap nor leave holes")
    refused(file(two(0, 2), ("x"):rep(6)), "'b' begins at 2, expected 4")
    refused(file(two(0, 5), ("x"):rep(9)), "'b' begins at 5, expected 4")
    refused(file(two(1, 5), ("x"):rep(9)), "'a' begins at 1, expected 0")
    refused(file(two(0, 4), ("x"):rep(9)), "the tensors end at byte %d+, the file at")
    refused(file(two(0, 4), ("x"):rep(6)), "lies at 4..8, the file holds 6")
    refused(file("{}", "x"), "the tensors end at byte 10, the file at 11")
  end)

  it("is told apart from what people give instead", function()
    refused(write(path(), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "Git LFS pointer")
    refused(write(path "x.bin", "PK\3\4" .. ("\0"):rep(60)), "PyTorch.*safetensors%.torch%.save_file")
    refused(write(path "x.pt", "\128\2\138\10\108\252\156\70\249\32\106\168\80\25\46" .. ("x"):rep(60)), "pickle.*save_file")
    refused(write(path "x.gguf", "GGUF\3\0\0\0" .. ("x"):rep(60)), "GGUF")
    refused(write(path "x.png", "\137PNG\r\n\26\n" .. ("x"):rep(60)), "no safetensors file")
    refused(write(path "x.txt", "Hello, this is no model at all."), "no safetensors file")
    refused("/dev/null", "not a regular file", "io")
    refused(folder .. "/absent.safetensors", "No such file", "io")
    local fifo = path "fifo"
    assert.equal(0, (shell("mkfifo " .. quote(fifo))))
    refused(fifo, "not a regular file", "io")
    local sparse = path "sparse.safetensors"
    assert.equal(0, (shell("truncate -s 1T " .. quote(sparse))))
    refused(sparse, "begin with '{'")
  end)

  it("takes bounded memory for its header", function()
    local large = path "large.safetensors"
    local header = '{"w":{"dtype":"F32","shape":[' .. ("1,"):rep(2 ^ 19) .. '1],"data_offsets":[0,4]}}'
    write(large, bytes(header, "abcd"))
    refused(large, "more than 8 dimensions")
    -- a header that the file is too small for is refused unread: 17 MiB in a sparse file of 100 MiB
    local over = write(path(), word(17 * 2 ^ 20) .. "{")
    assert.equal(0, (shell("truncate -s 100M " .. quote(over))))
    refused(over, "at most 16777216 are read")
    -- one that may be read, but not in so little memory, is an error like any other; in enough, its heap is bounded
    local huge = write(path "huge.safetensors", bytes('{"w":{"dtype":"F32","shape":[' .. ("1,"):rep(2 ^ 23 - 64) .. "1]}}"))
    local script = write(path "open.lua", [[
      local system = require "onn.core.system"
      local before = system.peak_rss()
      local _, message, code = require "onn.core.store".open(arg[1])
      print(code, system.peak_rss() - before, message)]])
    local function open(limit)
      local _, out = shell(("ulimit -v %d && OMP_NUM_THREADS=1 %s %s %s"):format(limit, quote(support.onn), quote(script), quote(huge)))
      return out:match "^(%a+)%s+(%d+)%s+(.*)\n$"
    end
    local code, grown, message, _
    if not sanitized then
      code, _, message = open(500000)
      assert.equal("memory", code)
      assert.matches("huge%.safetensors: out of memory for 16777%d+ bytes of JSON", message)
    end
    code, grown, message = open(2 ^ 40)
    assert.equal("format", code, message)
    assert.matches("more than 8 dimensions", message)
    assert.is_true(sanitized or tonumber(grown) < 50 * 2 ^ 24, grown)
  end)
end)

describe("reading a tensor", function()
  local function opened()
    local name = file(one("[1024]", 0, 4096), ("\0"):rep(4096))
    return assert(stores.open(name)), name
  end

  it("of a file that was cut after opening fails with the file's and the tensor's name, and leaves no memory behind", function()
    local store, name = opened()
    local before = tensors.memory().used
    assert.equal(0, (shell("truncate -s 200 " .. quote(name))))
    local t, message, code = store:read "w"
    assert.is_nil(t)
    assert.equal("io", code)
    assert.truthy(message:find(name, 1, true), message)
    assert.matches("changed since it was opened.*'w'", message)
    assert.equal(before, tensors.memory().used)
    store:close()
  end)

  it("of a file that was written to fails; one that was replaced gives the old bytes", function()
    local store, name = opened()
    local out = assert(io.open(name, "r+b"))
    out:seek("end", -4)
    out:write "\0\0\128\63"
    out:close()
    local t, message = store:read "w"
    assert.is_nil(t)
    assert.matches("changed", message)
    store:close()
    store, name = opened()
    write(name .. ".new", bytes(one("[1024]", 0, 4096), ("\1"):rep(4096)))
    assert.is_true(os.rename(name .. ".new", name))
    assert.equal(0, store:read("w"):totable()[1024])
    store:close()
  end)

  it("that is not there, or of a dtype that is not computed with, says so", function()
    local store = opened()
    local t, message = store:read "v"
    assert.is_nil(t)
    assert.matches("no tensor 'v'", message)
    store:close()
    local name = file(one("[1]", 0, 1, "F8_E4M3"), "x")
    store = assert(stores.open(name))
    assert.equal("F8_E4M3", store:info("w").dtype)
    t, message = store:read "w"
    assert.is_nil(t)
    assert.matches("'w' is F8_E4M3", message)
    store:close()
  end)

  it("beyond the budget says both numbers, and works again after", function()
    local store = opened()
    collectgarbage()
    local memory = tensors.memory()
    tensors.set_budget(memory.used + 1024)
    local ok, message = pcall(store.read, store, "w")
    tensors.set_budget(memory.budget or 2 ^ 40)
    assert.is_false(ok)
    assert.matches("budget: 4096 bytes asked, %d+ of %d+ in use", tostring(message))
    assert.equal(memory.used, tensors.memory().used)
    store:read("w"):free()
    store:close()
  end)
end)

describe("a store of several files", function()
  -- A directory whose index is `index` (text, or a map tensor -> file) and whose shards hold one tensor each: file -> tensor name.
  local function directory(index, shards)
    local name = path "model"
    assert(system.mkdir_p(name))
    for shard, tensor in pairs(shards) do write(name .. "/" .. shard, bytes(one("[1]", 0, 4):gsub('"w"', '"' .. tensor .. '"'), "abcd")) end
    if type(index) == "table" then
      local parts = {}
      for tensor, shard in pairs(index) do parts[#parts + 1] = ('"%s":"%s"'):format(tensor, shard) end
      index = '{"metadata":{"total_size":8},"weight_map":{' .. table.concat(parts, ",") .. "}}"
    end
    write(name .. "/model.safetensors.index.json", index)
    return name
  end

  it("is one set of names", function()
    local store = assert(stores.open(directory({ a = "1.safetensors", b = "2.safetensors" }, { ["1.safetensors"] = "a",
      ["2.safetensors"] = "b" })))
    assert.same({ "a", "b" }, store:names())
    assert.matches("2%.safetensors$", store:info("b").file)
    store:close()
  end)

  it("must be what its index says", function()
    local both = { ["1"] = "a", ["2"] = "b" }
    refused(directory("", both), "no JSON")
    refused(directory("[]", both), "no 'weight_map'")
    refused(directory("{}", both), "no 'weight_map'")
    refused(directory('{"weight_map":[]}', both), "no 'weight_map'")
    refused(directory('{"weight_map":{}}', both), "no 'weight_map'")
    refused(directory('{"weight_map":{"a":1}}', both), "'a' should name a file")
    refused(directory('{"weight_map":{"a":"1","a":"2"}}', both), "twice")
    refused(directory({ a = "1", b = "1" }, both), "'b' is not in 1")
    refused(directory({ a = "2", b = "1" }, both), "is not in . but in")
    refused(directory({ a = "1" }, { ["1"] = "b" }), "'a' is not in 1")
    refused(directory({ b = "1", c = "2" }, { ["1"] = "b", ["2"] = "b" }), "")
    refused(directory({ a = "1", b = "3" }, both), "/3: No such file", "io")
    local extra = directory({ a = "1" }, { ["1"] = "a" })
    write(extra .. "/1", bytes('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
      .. '"z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', "xy"))
    refused(extra, "'z' of .* is not in the index")
  end)

  it("stays beneath its directory", function()
    local function leads(shard) return directory({ a = shard }, { ["1"] = "a" }) end
    for _, shard in ipairs { "/etc/passwd", "../m.safetensors", "x/../../m", "..", "", "./../1", "a/.." } do
      refused(leads(shard), "'a' should name a file beneath")
    end
    local outside = file(one("[1]", 0, 4):gsub('"w"', '"a"'), "abcd")
    local name = leads "link.safetensors"
    assert.equal(0, (shell(("ln -s %s %s/link.safetensors"):format(quote(outside), quote(name)))))
    refused(name, "link%.safetensors: a link out of the model's directory")
    name = leads "sub/1"
    assert.equal(0, (shell(("ln -s %s %s/sub"):format(quote(folder), quote(name)))))
    refused(name, "No such file", "io")
    write(folder .. "/1", bytes(one("[1]", 0, 4):gsub('"w"', '"a"'), "abcd"))
    refused(name, "a link out of the model's directory")
    name = leads "inner"
    assert.equal(0, (shell(("ln -s 1 %s/inner"):format(quote(name)))))
    assert(stores.open(name)):close()
  end)

  it("follows a hub snapshot's links to the blobs beside it, and no others", function()
    local root = path "models--org--name"
    local snapshot = root .. "/snapshots/abc"
    assert(system.mkdir_p(snapshot))
    assert(system.mkdir_p(root .. "/blobs"))
    write(root .. "/blobs/00ff", bytes(one("[1]", 0, 4), "abcd"))
    write(root .. "/secret", bytes(one("[1]", 0, 4), "abcd"))
    write(snapshot .. "/model.safetensors.index.json", '{"weight_map":{"w":"model-1.safetensors"}}')
    local function link(to) assert.equal(0, (shell(("ln -sfn %s %s/model-1.safetensors"):format(to, quote(snapshot))))) end
    link "../../blobs/00ff"
    assert(stores.open(snapshot)):close()
    link "../../secret"
    refused(snapshot, "a link out")
    link "../../blobs/../secret"
    refused(snapshot, "a link out")
  end)

  it("says what a directory holds instead of a model", function()
    local name = path "empty"
    assert(system.mkdir_p(name))
    refused(name, "neither model%.safetensors nor model%.safetensors%.index%.json", "io")
    write(name .. "/pytorch_model.bin", "x")
    refused(name, "pytorch_model%.bin, a pickle.*safe_serialization")
    write(name .. "/other.safetensors", "x")
    refused(name, "but other%.safetensors", "io")
    assert.equal(0, (shell(("ln -s nowhere %s/model.safetensors"):format(quote(name)))))
    refused(name, "model%.safetensors: No such file", "io")
  end)
end)

describe("writing a store", function()
  it("gives back what went in, with the umask's permissions", function()
    local name = path()
    local t = tensors.from_table({ 1.5, -2 }, "f32")
    assert(stores.write(name, { ['odd "name"\n'] = t, b = t }, { format = "pt" }))
    local store = assert(stores.open(name))
    assert.same({ 1.5, -2 }, store:read('odd "name"\n'):totable())
    store:close()
    local _, mode = shell("umask; stat -c %a " .. quote(name))
    local mask, given = mode:match "(%d+)\n(%d+)"
    assert.equal(tonumber("666", 8) - tonumber(mask, 8), tonumber(given, 8))
  end)

  it("into a folder that is not there, or over a directory, fails and leaves nothing", function()
    local t = tensors.from_table({ 1 }, "f32")
    local ok, message, code = stores.write(folder .. "/nowhere/x.safetensors", { a = t })
    assert.is_nil(ok)
    assert.equal("io", code)
    assert.matches("nowhere/x%.safetensors: No such file", message)
    local name = path "directory"
    assert(system.mkdir_p(name .. "/inner"))
    ok, message = stores.write(name, { a = t })
    assert.is_nil(ok)
    assert.matches("directory", message)
    local _, left = shell(("ls %s | grep -c part-"):format(quote(folder)))
    assert.equal("0\n", left)
  end)
end)

describe("MODEL on the command line", function()
  it("may be org/name in the hub cache, by refs/main", function()
    local hub = path "hub"
    local root = hub .. "/models--org--tiny"
    assert(system.mkdir_p(root .. "/snapshots/abc"))
    assert(system.mkdir_p(root .. "/refs"))
    write(root .. "/refs/main", "abc\n")
    assert(system.mkdir_p(folder .. "/home"))
    assert(system.mkdir_p(folder .. "/user/.cache/huggingface"))
    for _, place in ipairs { "/home/hub", "/user/.cache/huggingface/hub" } do
      assert.equal(0, (shell(("ln -s %s %s"):format(quote(hub), quote(folder .. place)))))
    end
    local function resolve(model, environment)
      local _, out = shell(("%s %s -e %s"):format(environment or "HF_HUB_CACHE=" .. quote(hub), quote(support.onn),
        quote(("print(require('onn.files').resolve(%q))"):format(model))))
      return out
    end
    assert.equal(root .. "/snapshots/abc\n", resolve "org/tiny")
    assert.matches("^/.*/home/hub/models%-%-org%-%-tiny/snapshots/abc\n", resolve("org/tiny", "HF_HUB_CACHE= HF_HOME=" .. quote(folder
      .. "/home")))
    assert.matches("^/.*/user/%.cache/huggingface/hub/models%-%-org%-%-tiny/snapshots/abc\n", resolve("org/tiny",
      "HF_HUB_CACHE= HF_HOME= HOME=" .. quote(folder .. "/user")))
    assert.matches("^nil%s+no such model: 'org/tinny'", resolve "org/tinny")
    write(root .. "/refs/main", "gone")
    assert.matches("^nil.*snapshots/gone, which its refs/main names, is not there", resolve "org/tiny")
    write(root .. "/refs/main", "../../..")
    assert.matches("^nil.*refs/main names no revision", resolve "org/tiny")
  end)

  it("is refused in one line where it is none", function()
    local png = write(path "cat.png", "\137PNG\r\n\26\n" .. ("x"):rep(60))
    local close = path "smollm2"
    assert(system.mkdir_p(close))
    for model, pattern in pairs { [png] = "no safetensors file", ["/dev/null"] = "not a regular file", [folder
      .. "/none"] = "no such model",
      [close] = "neither model%.safetensors", [close:gsub("smollm2", "smolm2")] = "did you mean '.*smollm2'", [""] = "no such model",
      ["org/name"] = "no such model: 'org/name'; it is neither here nor in the hub cache" } do
      local status, out, err = run { "generate", model, "--prompt", "x" }
      assert.equal(1, status, model)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
  end)
end)
