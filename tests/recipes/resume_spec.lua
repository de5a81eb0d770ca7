-- Training that is killed, interrupted, or meets a full or broken disk: the last complete checkpoint loads, and going on from it gives
-- the adapter of an uninterrupted run bit by bit.
local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"
local quote, shell, write, read = support.quote, support.shell, support.write, support.read

-- Each save waits for the disk several times: a folder in memory, where there is one, keeps this quick.
local folder, model, rows, fault
local function memory_folder()
  local path = ("/dev/shm/onn-resume-%d"):format(system.pid())
  return system.isdir "/dev/shm" and system.mkdir_p(path) and path or support.scratch()
end

local usual = "--steps 7 --batch 4 --micro-batch 2 --seq-len 32 --rank 2 --pack --dropout 0.1 --lr 0.01 --save-every 1 "
  .. "--threads 1"
local function command(out, options)
  return ("OMP_WAIT_POLICY=passive %s train %s %s --out %s %s"):format(quote(support.onn), quote(model), quote(rows), quote(folder
    .. "/" .. out),
    options or usual)
end

-- train(out, options, environment) -> status, stdout, stderr
local function train(out, options, environment) return shell((environment or "") .. " " .. command(out, options)) end
local function with_fault(text) return ("ONN_FAULT=%s LD_PRELOAD=%s"):format(text, quote(fault)) end

local function adapter(out) return system.hash_file(("%s/%s/adapter_model.safetensors"):format(folder, out)) end
local function exists(path) return system.exists(folder .. "/" .. path) end
local function remove(out) system.remove_tree(folder .. "/" .. out) end

-- The names and hashes of all files under `out`.
local function picture(out)
  local _, text = shell(("cd %s && find . -type f | sort | xargs sha1sum"):format(quote(folder .. "/" .. out)))
  return text
end

local function left_over(out)
  local _, text = shell(("cd %s && find . -name '*.part*' -o -name '.*' ! -name ."):format(quote(folder .. "/" .. out)))
  return text
end

local reference
setup(function()
  folder = memory_folder()
  model, rows, fault = tiny.model(folder .. "/model"), tiny.data(folder .. "/rows.jsonl", 40), folder .. "/fault.so"
  local status, _, err = shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(quote(fault)))
  assert(status == 0, err)
  assert(train("warm", usual .. " --dry-run") == 0) -- the machine is measured once
  status, _, err = train("whole", usual .. " -q")
  assert(status == 0, err)
  assert(err == "", err)
  reference = assert(adapter "whole")
end)
teardown(function()
  system.remove_tree(folder)
  support.scratch_remove()
end)

-- Goes on until the end and compares; `said` is looked for in what it says.
local function resumes(out, said, options, expected)
  local status, _, err = train(out, (options or usual) .. " --resume")
  assert.equal(0, status, err)
  if said then assert.matches(said, err) end
  assert.equal(expected or reference, adapter(out))
  assert.equal("", left_over(out))
  remove(out)
end

describe("training with checkpoints", function()
  it("gives the same adapter without them, and keeps the newest two", function()
    local status = train("plain", (usual:gsub("%-%-save%-every 1", "")) .. " -q")
    assert.equal(0, status)
    assert.equal(reference, adapter "plain")
    assert.same({ "adapter_config.json", "adapter_model.safetensors", "checkpoint-5", "checkpoint-6" }, system.list(folder .. "/whole"))
    assert.same({ "adapter_config.json", "adapter_model.safetensors" }, system.list(folder .. "/plain"))
  end)

  it("killed before, in and after every phase of a save, goes on to the same bits", function()
    local log = folder .. "/calls"
    local status = train("log", usual .. " -q", ("ONN_FAULT_LOG=%s LD_PRELOAD=%s"):format(quote(log), quote(fault)))
    assert.equal(0, status)
    assert.equal(reference, adapter "log")
    local count = {}
    for call in io.lines(log) do count[call] = (count[call] or 0) + 1 end
    local tried = 0
    for _, call in ipairs { "mkostemp", "write", "fsync", "rename", "mkdir", "rmdir", "unlink" } do
      assert.is_true((count[call] or 0) > 0, call)
      local points = { 1, 2, 5, math.floor(count[call] / 2), count[call] - 1, count[call] }
      local seen = {}
      for _, n in ipairs(points) do
        if n >= 1 and n <= count[call] and not seen[n] then
          seen[n] = true
          local what = ("%s:%d:%s"):format(call, n, call == "write" and n % 2 == 0 and "tear" or "kill")
          status = train("killed", usual .. " -q", with_fault(what))
          assert.equal(137, status, what)
          resumes "killed"
          tried = tried + 1
        end
      end
    end
    assert.is_true(tried >= 20)
  end)

  it("killed at any moment, again and again, goes on to the same bits", function()
    local kills, status = 0, nil
    for turn = 1, 60 do
      status = shell(("timeout -s KILL %.3f sh -c %s"):format(0.03 + turn * 0.004 * (1 + turn / 20), quote("exec env " .. command("random", usual
        .. " -q --resume") .. " 2>&1")))
      if status == 0 then break end
      kills = kills + 1
    end
    assert.equal(0, status)
    assert.is_true(kills > 0)
    assert.equal(reference, adapter "random")
    remove "random"
  end)

  it("does so whatever way the data goes and whatever is trained", function()
    for _, change in ipairs { "--no-shuffle", "--pack stream --seq-len 24", "--micro-batch 1 --recompute on", "--full --seq-len 16",
      "--dtype bf16",
      "--schedule linear --warmup 2 --weight-decay 0.1 --layers last:1" } do
      local full = change:find "full" ~= nil
      local options = (full and usual:gsub("%-%-rank 2", ""):gsub("%-%-dropout 0.1", "") or usual) .. " " .. change
      local status, _, err = train("kind", options .. " -q")
      assert.equal(0, status, change .. err)
      local file = full and "model.safetensors" or "adapter_model.safetensors"
      local want = assert(system.hash_file(folder .. "/kind/" .. file))
      remove "kind"
      status = train("kind", options .. " -q", with_fault "rename:17:kill")
      assert.equal(137, status, change)
      status, _, err = train("kind", options .. " --resume")
      assert.equal(0, status, err)
      assert.matches("resumed from .*checkpoint%-%d, step %d of 7", err)
      assert.equal(want, system.hash_file(folder .. "/kind/" .. file), change)
      remove "kind"
    end
  end)

  it("writes whole through short and interrupted writes", function()
    for _, what in ipairs { "write:3:short", "write:9:EINTR" } do
      local status, _, err = train("short", usual .. " -q", with_fault(what))
      assert.equal(0, status, err)
      assert.equal(reference, adapter "short")
      remove "short"
    end
  end)

  it("ends with one line on a full or broken disk, the older checkpoint whole", function()
    for what, said in pairs { ["write:12:ENOSPC"] = "No space left on device", ["fsync:30:EIO"] = "Input/output error",
      ["rename:12:EIO"] = "Input/output error", ["mkostemp:12:ENOSPC"] = "No space left on device",
        ["mkdir:4:ENOSPC"] = "No space left on device",
      ["fsync:45:EIO"] = "Input/output error" } do
      local status, _, err = train("disk", usual .. " -q", with_fault(what))
      assert.equal(1, status, what)
      assert.matches("^onn: [^\n]*" .. said .. "\n$", err, what)
      assert.truthy(err:find(folder .. "/disk", 1, true), err)
      resumes("disk", "resumed from")
    end
  end)

  it("ends with one line on a file system that is full", function()
    local place = folder .. "/small"
    assert(system.mkdir_p(place))
    if shell(("mount -t tmpfs -o size=400k none %s"):format(quote(place))) ~= 0 then
      pending "mounting a small file system needs root"
      return
    end
    local status, _, err = train("small/out", usual .. " --keep 100 -q")
    local verified = require("onn.checkpoint").newest(place .. "/out")
    local step = verified and tonumber(verified:match "%d+$") or 0
    local moved = shell(("cp -r %s %s && umount %s"):format(quote(place .. "/out"), quote(folder .. "/moved"), quote(place)))
    assert.equal(0, moved)
    assert.equal(1, status)
    assert.matches("^onn: [^\n]*No space left on device\n$", err)
    assert.is_true(step >= 1, "no checkpoint")
    resumes("moved", "step " .. step .. " of 7")
  end)
end)

describe("--resume", function()
  local function interrupted(out)
    assert.equal(137, (train(out, usual .. " -q", with_fault "rename:26:kill"))) -- checkpoints 3 and 4 are there
    assert.is_true(exists(out .. "/checkpoint-4/manifest.json") and exists(out .. "/checkpoint-3/manifest.json"))
  end

  it("without a checkpoint starts anew and says so", function()
    resumes("none", "no complete checkpoint in .*none; starting anew")
    assert(system.mkdir_p(folder .. "/none/checkpoint-9"))
    resumes("none", "checkpoint%-9/manifest.json: No such file or directory; passed over.*starting anew")
  end)

  it("passes over damaged checkpoints aloud", function()
    interrupted "damaged"
    local file = folder .. "/damaged/checkpoint-4/"
    local function again(change, said)
      system.remove_tree(folder .. "/copy")
      assert.equal(0, (shell(("cp -r %s/damaged %s/copy"):format(quote(folder), quote(folder)))))
      change(folder .. "/copy/checkpoint-4/")
      resumes("copy", said .. "; passed over.*resumed from .*checkpoint%-3")
    end
    again(function(c) write(c .. "state.json", (read(file .. "state.json"):gsub('"step"', '"stop"'))) end, "state.json is damaged")
    again(function(c) write(c .. "optimizer.safetensors", read(file .. "optimizer.safetensors"):sub(1, -2)) end,
      "optimizer.safetensors is damaged")
    again(function(c) write(c .. "adapter_model.safetensors", read(file .. "adapter_model.safetensors"):sub(1, -2) .. "?") end,
      "is damaged")
    again(function(c) os.remove(c .. "adapter_config.json") end, "adapter_config.json is missing")
    again(function(c) write(c .. "manifest.json", "") end, "manifest.json: .*no JSON at all")
    again(function(c) write(c .. "manifest.json", "{}") end, "lists no files")
    again(function(c) write(c .. "manifest.json", '{"files":{}}') end, "does not list state.json")
    again(function(c) write(c .. "manifest.json", '{"files":{"state.json":1,"optimizer.safetensors":{"size":"x"}}}') end, "is damaged")
    again(function(c) os.remove(c .. "manifest.json") end, "No such file or directory")
    remove "damaged"
  end)

  it("takes a checkpoint's or an output's directory", function()
    interrupted "from"
    local status, _, err = train("to", ("%s --resume %s"):format(usual, quote(folder .. "/from/checkpoint-3")))
    assert.equal(0, status, err)
    assert.matches("checkpoint%-3, step 3", err)
    assert.equal(reference, adapter "to")
    remove "to"
    status, _, err = train("to", ("%s --resume %s"):format(usual, quote(folder .. "/from")))
    assert.equal(0, status, err)
    assert.matches("checkpoint%-4, step 4", err)
    assert.equal(reference, adapter "to")
    remove "to"
    status, _, err = train("to", usual .. " -q --resume /nowhere/at/all")
    assert.equal(1, status)
    assert.matches("^onn: %-%-resume: /nowhere/at/all/manifest.json: No such file or directory\n$", err)
    assert.is_false(exists "to")
    remove "from"
  end)

  it("refuses where the checkpoint means something else, and says what changes", function()
    interrupted "other"
    local function refuses(options, said)
      local before = picture "other"
      local status, _, err = train("other", usual .. " -q --resume " .. options)
      assert.equal(1, status, options)
      assert.matches("^onn: [^\n]*" .. said .. "[^\n]*\n$", err)
      assert.equal(before, picture "other")
    end
    refuses("--batch 2", "made with %-%-batch 4, this run has 2; %-%-overwrite starts anew")
    refuses("--seed 5", "%-%-seed 0, this run has 5")
    refuses("--seq-len 30", "seq%-len 32, this run has 30")
    refuses("--rank 4", "does not have this run's shape")
    refuses("--layers 0", "trains more tensors")
    local kept = rows
    rows = tiny.data(folder .. "/others.jsonl", 40, 99)
    refuses("", "made with other data")
    rows = kept
    local status, _, err = train("other", usual .. " --resume --lr 0.02")
    assert.equal(0, status, err)
    assert.matches("lr was 0.01%d*, is now 0.02", err)
    remove "other"
  end)
end)

describe("--out", function()
  it("that exists is refused, that cannot be written is told before training", function()
    local before = picture "whole"
    local status, _, err = train("whole", usual .. " -q")
    assert.equal(1, status)
    assert.matches("^onn: [^\n]*whole exists; %-%-overwrite replaces it, %-%-resume goes on", err)
    assert.equal(before, picture "whole")
    status, _, err = train("rows.jsonl", usual .. " -q --overwrite")
    assert.equal(1, status)
    assert.matches("this is a file; a directory is expected", err)
    status, _, err = train("rows.jsonl/x", usual .. " -q")
    assert.equal(1, status)
    assert.matches("Not a directory", err)
    status, _, err = train("../../../proc/onn", usual .. " -q")
    assert.equal(1, status)
    assert.matches("^onn: [^\n]+\n$", err)
  end)

  it("keeps the old result under --overwrite until the new one is there", function()
    assert.equal(0, (shell(("cp -r %s/whole %s/kept"):format(quote(folder), quote(folder)))))
    local before = picture "kept"
    local good = rows
    for text, said in pairs { ["{"] = "JSON", ['{"foo":1}\n'] = "foo", [""] = "empty" } do
      rows = write(folder .. "/bad.jsonl", text)
      local status, _, err = train("kept", usual .. " -q --overwrite")
      assert.equal(1, status)
      assert.matches(said, err)
      assert.equal(before, picture "kept")
    end
    rows = good
    for _, options in ipairs { "--rank 0", "--layers 77", "--memory 10KB", "--targets nothing" } do
      local status = train("kept", usual .. " -q --overwrite " .. options)
      assert.is_true(status == 1 or status == 2, options)
      assert.equal(before, picture "kept", options)
    end
    assert.equal(137, (train("kept", usual .. " -q --overwrite --seed 3", with_fault "write:2:kill")))
    assert.equal(reference, adapter "kept")
    assert.is_true(exists "kept/checkpoint-6/manifest.json")
    assert.equal(0, (train("kept", usual .. " -q --overwrite --seed 3 --save-every 3")))
    assert.not_equal(reference, adapter "kept")
    assert.same({ "adapter_config.json", "adapter_model.safetensors", "checkpoint-3", "checkpoint-6" }, system.list(folder .. "/kept"))
    assert.equal(3, json.decode(read(folder .. "/kept/checkpoint-6/state.json")).run.seed)
    remove "kept"
  end)
end)

describe("a signal", function()
  local long = (usual:gsub("%-%-steps 7", "--steps 400"):gsub("%-%-save%-every 1 ", "--save-every 400 "))

  -- Starts training, waits until `ready` is there, runs the shell code `act` ($pid is the run), and gives status and stderr.
  local function signalled(out, options, ready, act)
    os.remove(folder .. "/" .. out .. ".log")
    local status, text, err = shell(([[
      env %s >/dev/null & pid=$!
      n=0; while [ ! -s %s ] && [ $n -lt 500 ]; do sleep 0.02; n=$((n + 1)); done
      %s
      wait $pid; echo $?]]):format(command(out, options .. " --log " .. quote(folder .. "/" .. out .. ".log")), quote(folder .. "/"
        .. out .. ready), act))
    assert.equal(0, status, err)
    return tonumber(text), err
  end

  it("lets the step finish, saves, and ends with 130 or 143", function()
    assert.equal(0, (train("uncut", long .. " -q")))
    local want = adapter "uncut"
    for name, code in pairs { INT = 130, TERM = 143 } do
      local status, err = signalled("cut", long, ".log", "kill -" .. name .. " $pid")
      assert.equal(code, status, err)
      local step = tonumber(err:match "interrupted: step (%d+) is saved in .*checkpoint%-%d+; go on with %-%-resume")
      assert.is_truthy(step, err)
      assert.is_true(step > 0 and step < 400, err)
      assert.is_true(exists(("cut/checkpoint-%d/manifest.json"):format(step)))
      assert.is_false(exists "cut/adapter_model.safetensors")
      resumes("cut", "step " .. step .. " of 400", long, want)
    end
  end)

  it("given twice ends at once", function()
    local slow = usual:gsub("%-%-batch 4 %-%-micro%-batch 2", "--batch 2048 --micro-batch 2048"):gsub("%-%-pack", "")
    local began = system.now()
    rows = tiny.data(folder .. "/many.jsonl", 4096)
    local status = signalled("twice", slow, ".log", "kill -INT $pid; sleep 0.05; kill -INT $pid")
    rows = folder .. "/rows.jsonl"
    assert.equal(130, status)
    assert.is_true(system.now() - began < 30)
    local saved = require("onn.checkpoint").list(folder .. "/twice")
    assert.is_true(#saved <= 1) -- the first step's own save at most
  end)

  it("of a pipe that broke is quiet, and saves", function()
    local status, out, err = shell(("{ env %s 2>&1; echo $? >%s; } | head -n 6"):format(command("pipe", long
      .. " --eval-every 1 --eval " .. quote(rows)), quote(folder .. "/status")))
    assert.equal(0, status)
    assert.equal("", err)
    assert.equal(6, select(2, out:gsub("\n", "")))
    local code = tonumber(read(folder .. "/status"))
    assert.equal(141, code)
    assert.equal(1, #require("onn.checkpoint").list(folder .. "/pipe"))
    remove "pipe"
  end)
end)
