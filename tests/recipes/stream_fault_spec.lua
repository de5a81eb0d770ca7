-- Training whose weights are streamed, met by a broken disk, a file that changes, a signal, or death at any moment: one clear line, the
-- last checkpoint loads, and going on from it gives the adapter of an uninterrupted run bit by bit.
local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"
local quote, shell = support.quote, support.shell

local folder, model, rows, fault, reference
local function memory_folder()
  local path = ("/dev/shm/onn-stream-fault-%d"):format(system.pid())
  return system.isdir "/dev/shm" and system.mkdir_p(path) and path or support.scratch()
end

local function options(more)
  return "--steps 6 --batch 8 --micro-batch 2 --seq-len 32 --rank 2 --dropout 0.1 --lr 0.01 --layers last:2 --save-every 1 --threads 1 "
    .. (more or "")
end
local streamed = "--slots 2"

-- run(out, more, environment, the model's directory) -> status, stdout, stderr
local function command(out, more, place)
  return ("OMP_WAIT_POLICY=passive %s train %s %s --out %s %s"):format(quote(support.onn), quote(place or model), quote(rows),
    quote(folder .. "/" .. out), options(more))
end
local function run(out, more, environment, place) return shell((environment or "") .. " " .. command(out, more, place)) end
local function with_fault(text) return ("ONN_FAULT=%s LD_PRELOAD=%s"):format(text, quote(fault)) end

local function adapter(out) return system.hash_file(("%s/%s/adapter_model.safetensors"):format(folder, out)) end
local function remove(out) system.remove_tree(folder .. "/" .. out) end

-- Nothing half written and no scratch data lies under `out`.
local function clean(out)
  local _, text = shell(("cd %s && find . -name '*.part*' -o -name 'scratch*' -o -name 'prefix-*' -o -name '.*' ! -name ."):format(
    quote(folder .. "/" .. out)))
  assert.equal("", text)
end

-- Goes on until the end and compares; what it says is given back.
local function resumes(out, more, place)
  local status, _, err = run(out, (more or streamed) .. " --resume", nil, place)
  assert.equal(0, status, err)
  assert.equal(reference, adapter(out), err)
  clean(out)
  remove(out)
  return err
end

local function one_line(status, err, said, what)
  assert.equal(1, status, what .. ": " .. err)
  assert.matches("^onn: [^\n]*" .. said .. "[^\n]*\n$", err, what)
end

setup(function()
  folder = memory_folder()
  model, rows, fault = tiny.model(folder .. "/model", { num_hidden_layers = 4 }), tiny.data(folder .. "/rows.jsonl", 16), folder .. "/fault.so"
  local status, _, err = shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(quote(fault)))
  assert(status == 0, err)
  assert(run("warm", "--dry-run --slots 2") == 0) -- the machine is measured once
  status, _, err = run("whole", "-q")
  assert(status == 0 and err == "", err)
  reference = assert(adapter "whole")
end)
teardown(function()
  system.remove_tree(folder)
  support.scratch_remove()
end)

local function calls_of(more)
  local log, count = folder .. "/calls", {}
  os.remove(log)
  local status, _, err = run("log", more .. " -q", ("ONN_FAULT_LOG=%s LD_PRELOAD=%s"):format(quote(log), quote(fault)))
  assert.equal(0, status, err)
  assert.equal("", err)
  assert.equal(reference, adapter "log")
  clean "log"
  remove "log"
  for call in io.lines(log) do count[call] = (count[call] or 0) + 1 end
  return count
end

describe("training that streams its weights", function()
  it("ends with one line where a read fails, whichever it is", function()
    local count = calls_of(streamed)
    for _, share in ipairs { 0, 0.1, 0.4, 0.7, 1 } do
      local n = math.max(1, math.floor(count.pread * share))
      local what = ("pread:%d:EIO"):format(n)
      local status, _, err = run("read", streamed .. " -q", with_fault(what))
      one_line(status, err, "Input/output error", what)
      assert.matches("model%.safetensors", err)
      resumes "read"
    end
    for _, what in ipairs { "pread:30:short", "pread:40:EINTR" } do
      local status, _, err = run("short", streamed .. " -q", with_fault(what))
      assert.equal(0, status, what .. err)
      assert.equal(reference, adapter "short")
      remove "short"
    end
  end)

  it("killed in a sweep, a spill or a save, goes on to the same bits", function()
    local more = streamed .. " --no-prefix-cache"
    local count = calls_of(more)
    local tried = 0
    for _, call in ipairs { "pread", "write", "rename", "fsync" } do
      for _, share in ipairs { 0.3, 0.55, 0.9 } do
        local what = ("%s:%d:kill"):format(call, math.max(1, math.floor(count[call] * share)))
        local status = run("killed", more .. " -q", with_fault(what))
        assert.equal(137, status, what)
        resumes("killed", more)
        tried = tried + 1
      end
    end
    assert.equal(12, tried)
  end)

  it("goes on with other slots, or in memory", function()
    assert.equal(137, (run("other", streamed .. " -q", with_fault "rename:20:kill")))
    resumes("other", "--slots 1 --chunk 2 --recompute on")
    assert.equal(137, (run("other", streamed .. " -q", with_fault "rename:20:kill")))
    resumes("other", "")
    assert.equal(137, (run("other", "-q", with_fault "rename:20:kill")))
    resumes "other"
  end)

  it("finds the prefix cache of the run that died, and takes it away at its end", function()
    for _, more in ipairs { "", " --no-prefix-cache" } do -- a run that has no use for it takes it away too
      assert.equal(137, (run("found", streamed .. " -q --recompute on", with_fault "rename:26:kill")))
      assert.is_true(system.isdir(folder .. "/found/scratch"))
      assert(support.write(folder .. "/found/scratch/prefix-00001.safetensors", "half"))
      local err = resumes("found", streamed .. more)
      assert.equal(more == "", err:find("prefix-00001.safetensors: ", 1, true) ~= nil, err)
    end
  end)

  -- A copy of the model that `change` (a shell command; $f is its file) hurts once the log has a line.
  local function hurt(out, change)
    local place = folder .. "/copy"
    system.remove_tree(place)
    assert.equal(0, (shell(("cp -r %s %s"):format(quote(model), quote(place)))))
    local log = folder .. "/" .. out .. ".log"
    os.remove(log)
    local status, text, err = shell(([[
      f=%s; env %s >/dev/null & pid=$!
      n=0; while [ ! -s %s ] && [ $n -lt 1000 ]; do sleep 0.01; n=$((n + 1)); done
      kill -STOP $pid; %s; kill -CONT $pid
      wait $pid; echo $?]]):format(quote(place .. "/model.safetensors"), command(out, streamed .. " -q --steps 4000 --epochs 9 --log " .. quote(log),
      place):gsub("%-%-steps 6 ", ""):gsub("%-%-save%-every 1", "--save-every 20"), quote(log), change))
    assert.equal(0, status, err)
    return tonumber(text), err
  end

  it("ends with one line where its file changes under it", function()
    for change, said in pairs { ["truncate -s -50000 $f"] = "chang", ["truncate -s 100 $f"] = "chang", ["touch $f"] = "chang" } do
      local status, err = hurt("changed", change)
      one_line(status, err, said, change)
      assert.matches("copy/model%.safetensors", err)
      local newest = require("onn.checkpoint").newest(folder .. "/changed")
      if newest then assert.is_true(require("onn.checkpoint").verify(newest)) end
      remove "changed"
    end
  end)
end)

describe("the least memory", function()
  local wide, least, want
  local few = "--steps 3 --batch 16 --micro-batch 1 --seq-len 32 --rank 1 --recompute on --lr 0.01 --threads 1 --layers last:2 "
  local function train(out, more, environment)
    return shell(("%s OMP_WAIT_POLICY=passive %s train %s %s --out %s %s %s"):format(environment or "", quote(support.onn), quote(wide),
      quote(rows), quote(folder .. "/" .. out), few, more))
  end
  setup(function()
    wide = tiny.model(folder .. "/wide", { num_hidden_layers = 6, hidden_size = 64, intermediate_size = 256 })
    local status, _, err = train("free", "-q")
    assert(status == 0, err)
    want = adapter "free"
    status, _, err = train("tight", "-q --memory 100KB")
    assert(status == 1 and not system.exists(folder .. "/tight"), err)
    least = assert(err:match "needs at least ([%d.]+ %a+)", err)
  end)

  it("that a refusal names is enough, and no more is used", function()
    local log = folder .. "/tight.log"
    local status, out, err = train("tight", ("--json --memory %s --log %s"):format(quote(least), quote(log)))
    assert.equal(0, status, err)
    local result = assert(json.decode(out))
    assert.matches("carries beyond .* are spilled", err)
    assert.equal(want, adapter "tight")
    assert.is_true(result.device_peak <= require("onn.units").parse_bytes(least))
    assert.is_true(result.device_peak <= result.predicted_peak and result.bytes_streamed > 0)
    assert.is_true(result.disk_bytes_per_s > 0 and result.disk_write_bytes_per_s > 0)
    for _, key in ipairs { "bytes_streamed", "bytes_spilled", "bytes_fetched" } do
      local sum = 0
      for line in io.lines(log) do sum = sum + json.decode(line)[key] end
      assert.is_true(sum > 0)
      assert.equal(sum, result[key], key)
    end
    clean "tight"
    remove "tight"
  end)

  it("spills, and a scratch file that fails ends the run with one line; going on is exact", function()
    local more = "-q --save-every 1 --no-prefix-cache --memory " .. quote(least)
    for _, what in ipairs { "pwrite:3:ENOSPC", "pwrite:60:EIO", "pread_back:2:EIO", "pread_back:40:EIO" } do
      local status, _, err = train("spill", more, with_fault(what))
      one_line(status, err, what:find "ENOSPC" and "No space left on device" or "Input/output error", what)
      assert.matches("spill", err)
      clean "spill"
      status, _, err = train("spill", more .. " --resume")
      assert.equal(0, status, err)
      assert.equal(want, adapter "spill")
      remove "spill"
    end
  end)

  it("killed while it spills, goes on to the same bits", function()
    local more = "-q --save-every 1 --no-prefix-cache --memory " .. quote(least)
    for _, what in ipairs { "pwrite:2:kill", "pwrite:70:kill", "pread_back:50:kill" } do
      assert.equal(137, (train("dead", more, with_fault(what))), what)
      local status, _, err = train("dead", more .. " --resume")
      assert.equal(0, status, err)
      assert.equal(want, adapter "dead")
      clean "dead"
      remove "dead"
    end
  end)

  it("goes on aloud where a file of the prefix cache cannot be written", function()
    local heard = 0
    for n = 2, 4 do
      local status, out, err = train("known", "--epochs 4 --memory " .. quote(least), with_fault(("write:%d:EBADMSG"):format(n)))
      assert.equal(0, status, err)
      assert.equal(want, adapter "known")
      assert.matches("limit +%d+ %% of it, bound by %a+: .* at .*, .* read at .*, .* written at .* took ", out)
      if err:find "prefix .*Bad message; what is not stored is computed again" then heard = heard + 1 end
      clean "known"
      remove "known"
    end
    assert.is_true(heard > 0)
  end)
end)

describe("a signal in the middle of a sweep", function()
  -- A read that hangs until the signal is there: the sweep is under way.
  it("saves what was finished, ends with 130, and going on is exact", function()
    local many = tiny.data(folder .. "/many.jsonl", 2048)
    local kept = rows
    rows = many
    local function slow(more)
      return (more .. " --no-prefix-cache --recompute on"), command
    end
    local function line(out, more)
      return (command(out, (slow(more))):gsub("%-%-batch 8 ", "--batch 512 "):gsub("%-%-steps 6 ", "--steps 3 "):gsub("%-%-save%-every 1 ", ""))
    end
    local status, _, err = shell(line("uncut", streamed .. " -q"))
    assert.equal(0, status, err)
    local want = adapter "uncut"
    for name, code in pairs { INT = 130, TERM = 143 } do
      local log = folder .. "/cut.log"
      os.remove(log)
      local got, text
      got, text, err = shell(([[
        env %s >/dev/null & pid=$!
        n=0; while [ ! -s %s ] && [ $n -lt 2000 ]; do sleep 0.01; n=$((n + 1)); done
        sleep 0.05; kill -%s $pid; wait $pid; echo $?]]):format(line("cut", streamed .. " --log " .. quote(log)), quote(log), name))
      assert.equal(0, got, err)
      assert.equal(code, tonumber(text), err)
      local step = tonumber(err:match "interrupted: step (%d+) is saved in .*checkpoint%-%d+; go on with %-%-resume")
      assert.is_truthy(step, err)
      local lines = 0
      for l in io.lines(log) do lines = lines + (json.decode(l) and 1 or 0) end
      assert.equal(lines, step)
      assert.is_true(step < 3)
      clean "cut"
      status, _, err = shell(line("cut", streamed .. " --resume"))
      assert.equal(0, status, err)
      assert.matches("step " .. step .. " of 3", err)
      assert.equal(want, adapter "cut")
      clean "cut"
      remove "cut"
    end
    rows = kept
    remove "uncut"
  end)

  it("before the first update is finished there is nothing to save", function()
    local kept = rows
    rows = tiny.data(folder .. "/most.jsonl", 4096)
    local out = folder .. "/early"
    local _, text, err = shell(([[
      env %s >/dev/null & pid=$!
      n=0; while [ ! -d %s ] && [ $n -lt 2000 ]; do sleep 0.01; n=$((n + 1)); done
      sleep 0.3; kill -INT $pid; wait $pid; echo $?]]):format(command("early", streamed .. " --no-prefix-cache --recompute on"):gsub(
      "%-%-batch 8 ", "--batch 4096 "), quote(out)))
    rows = kept
    assert.equal(130, tonumber(text), err)
    assert.matches("interrupted before the first update was finished", err)
    assert.same({}, system.list(out))
    remove "early"
  end)
end)
