-- The frozen-prefix cache: what the frozen stages below the lowest trained one give for each sequence, f32 as it was computed.
-- A sequence is known by its ids alone: positions count from 0 within it, so neither order nor packing nor micro-batches matter.
-- Memory first, then files prefix-NNNNN.safetensors, which a later run finds again.
--   local p = prefix.open { key = prefix.key(model, lowest), quota = 1e9, directory = "out", disk = 1e10, note = print }
--   local hidden = p:get(batch); if not hidden then ... p:put(batch, hidden) end; p:close(true)
local core = require "onn.core.tensor"
local hash = require "onn.core.hash"
local json = require "onn.core.json"
local nearest = require "onn.nearest"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local units = require "onn.units"

local Prefix = {}
Prefix.__index = Prefix

local FILE_BYTES = 32e6 -- what waits in memory for one file, within the quota
local OPEN_FILES = 64

local known = { "key", "quota", "directory", "disk", "note", "angles" }

local prefix = {}

-- A text that differs wherever the values do: the model's files, the arithmetic and what does it, and where the prefix ends.
function prefix.key(model, lowest)
  local paths, seen = {}, {}
  for _, name in ipairs(model.store:names()) do
    local path = model.store:info(name).file
    if not seen[path] then seen[path], paths[#paths + 1] = true, path end
  end
  table.sort(paths)
  for i, path in ipairs(paths) do
    local stat = assert(system.stat(path))
    paths[i] = ("%s %.0f %.0f"):format(system.realpath(path) or path, stat.size, stat.mtime)
  end
  return ("onn %s %s; %s; %s arithmetic; stages below %d; config %s; %s"):format(program.version, program.revision or "", (core.backend()),
    model.dtype, lowest, hash.text(json.encode(model.config)), table.concat(paths, "; "))
end

local function path_of(self, number) return ("%s/prefix-%05d.safetensors"):format(self.directory, number) end

-- Forgets a file that cannot be used, and what it held.
local function drop_file(self, file)
  if file.store then file.store:close() end
  file.store = nil
  os.remove(file.path)
  self.files[file], self.disk_bytes = nil, self.disk_bytes - file.bytes
  for name, e in pairs(self.sequences) do
    if e.file == file then self.sequences[name], self.count = nil, self.count - 1 end
  end
end

local function drop_damaged(self, file, why)
  drop_file(self, file)
  if why:sub(1, #file.path + 2) == file.path .. ": " then why = why:sub(#file.path + 3) end
  self.note(("%s: %s; removed, it is made anew"):format(file.path, why))
end

local function open_file(self, file)
  if file.store then return file.store end
  local store, message = stores.open(file.path)
  if not store then return nil, message end
  file.store = store
  table.insert(self.open_files, file)
  if #self.open_files > OPEN_FILES then
    local oldest = table.remove(self.open_files, 1)
    if oldest.store then oldest.store:close() end
    oldest.store = nil
  end
  return store
end

-- What an earlier run left in the directory.
local function find(self)
  local foreign = 0
  for _, name in ipairs(system.list(self.directory) or {}) do
    local number = tonumber(name:match "^prefix%-(%d+)%.safetensors$")
    if name:find "^prefix%-%d+%.safetensors%.part%-%w%w%w%w%w%w$" then os.remove(self.directory .. "/" .. name) end
    if number then
      local path = self.directory .. "/" .. name
      local stat = system.stat(path)
      local file = { path = path, bytes = stat and stat.size or 0 }
      self.last, self.disk_bytes, self.files[file] = math.max(self.last, number), self.disk_bytes + file.bytes, true
      local store, message = open_file(self, file)
      local metadata = store and store:metadata()
      if not store then
        drop_damaged(self, file, message)
      elseif metadata.prefix ~= self.key then
        drop_file(self, file)
        foreign = foreign + 1
      else
        for _, sequence in ipairs(store:names()) do
          local info = store:info(sequence)
          if metadata[sequence] and info.dtype == "F32" and #info.shape == 2 and not self.sequences[sequence] then
            self.sequences[sequence], self.count = { file = file, sum = metadata[sequence] }, self.count + 1
          end
        end
      end
    end
  end
  if foreign > 0 then
    self.note(("%s: removed %d files prefix-*.safetensors that are another model's, or made by other arithmetic"):format(self.directory, foreign))
  end
end

-- Removes what a run left in `directory`.
function prefix.remove(directory)
  for _, name in ipairs(system.list(directory) or {}) do
    if name:find "^prefix%-%d+%.safetensors" then os.remove(directory .. "/" .. name) end
  end
end

-- key: text that files of another run must have to be used; quota: bytes of memory; directory: for files (nil: none); disk: most bytes
-- of files (default: half of what is free or theirs); note(text): hears of what is lost or left; angles: the model's (onn.nn.rope), where angles
-- depend on the batch's longest sequence. The cache's field `full` is true once nothing more can be stored.
function prefix.open(options)
  nearest.check(options, known, "prefix.open")
  local self = setmetatable({ key = options.key, quota = options.quota or math.huge, directory = options.directory, angles = options.angles,
    note = options.note or function() end, sequences = {}, files = {}, count = 0, ram = 0, waiting = {}, waiting_bytes = 0, disk_bytes = 0, last = 0,
    hits = 0, misses = 0, open_files = {} }, Prefix)
  self.file_bytes = self.directory and math.min(FILE_BYTES, self.quota / 4) or 0
  if self.directory then
    self.made = not system.exists(self.directory)
    local ok, message = system.mkdir_p(self.directory)
    if not ok then
      self.note(message .. "; only memory is used")
      self.directory, self.made, self.file_bytes = nil, false, 0
    else
      find(self)
      self.disk = options.disk or ((system.free_disk(self.directory) or 0) + self.disk_bytes) / 2
    end
  end
  return self
end

local function names_of(self, batch)
  local regime = self.angles and self.angles:regime_of(batch.longest or batch.ids:size(1)) or 0
  return hash.sequences(batch.ids, batch.starts, regime)
end

-- Copies a sequence's rows from its file into `rows`; false where the file turns out to be damaged.
local function fetch(self, name, e, rows)
  local store, message = open_file(self, e.file)
  local t
  if store then t, message = store:read(name) end
  if t and (t:size(1) ~= rows:size(1) or t:size(2) ~= rows:size(2) or hash.data(t) ~= e.sum) then
    t:free()
    t, message = nil, ("sequence %s does not have its checksum"):format(name)
  end
  if not t then
    drop_damaged(self, e.file, message)
    return false
  end
  rows:copy(t)
  t:free()
  return true
end

-- Are all sequences of a micro-batch known? Of names alone: a file that turns out to be damaged is get()'s to find.
function Prefix:knows(batch)
  for _, name in ipairs(names_of(self, batch)) do
    if not self.sequences[name] then return false end
  end
  return true
end

-- f32 (tokens, width) of a whole micro-batch {ids i32 (tokens), starts i32 (sequences + 1), longest}, the caller's to free; nil unless
-- all its sequences are known.
function Prefix:get(batch)
  local names = names_of(self, batch)
  for _, name in ipairs(names) do
    if not self.sequences[name] then
      self.misses = self.misses + #names
      return nil
    end
  end
  local starts = batch.starts:totable()
  local width = self.width
  if not width then -- all of it is of an earlier run
    local e = self.sequences[names[1]]
    local store = e and open_file(self, e.file)
    width = store and store:info(names[1]) and store:info(names[1]).shape[2] or 1
  end
  local out = core.new("f32", { batch.ids:size(1), width })
  for i, name in ipairs(names) do
    local e = self.sequences[name]
    local rows = out:narrow(1, starts[i] + 1, starts[i + 1] - starts[i])
    local fine = e ~= nil
    if fine and e.rows then rows:copy(e.rows) elseif fine then fine = fetch(self, name, e, rows) end
    rows:free()
    if not fine then
      out:free()
      self.misses = self.misses + #names
      return nil
    end
  end
  self.width, self.hits = width, self.hits + #names
  return out
end

local function say_once(self, what)
  if not self.full then self.note(what .. "; what is not stored is computed again in each epoch") end
  self.full = true
end

-- Writes what waits into one file. What no file takes stays in memory, where it is already.
local function flush(self)
  if #self.waiting == 0 then return end
  local file = { path = path_of(self, self.last + 1), bytes = self.waiting_bytes }
  local message
  if self.disk_bytes + self.waiting_bytes > self.disk then
    message = ("%s: the %s that may lie here are used"):format(self.directory, units.bytes(self.disk))
  else
    local contents, metadata = {}, { prefix = self.key }
    for _, name in ipairs(self.waiting) do
      local e = self.sequences[name]
      contents[name], metadata[name] = e.rows, hash.data(e.rows)
      e.sum = metadata[name]
    end
    local written
    written, message = stores.write(file.path, contents, metadata)
    if written then
      file.bytes = system.stat(file.path).size
      self.last, self.disk_bytes, self.files[file] = self.last + 1, self.disk_bytes + file.bytes, true
    end
  end
  if message then
    say_once(self, message)
  else
    for _, name in ipairs(self.waiting) do
      local e = self.sequences[name]
      self.ram = self.ram - e.rows:bytes()
      e.rows:free()
      e.rows, e.file = nil, file
    end
  end
  self.waiting, self.waiting_bytes = {}, 0
end

-- Remembers each sequence's rows of hidden f32 (tokens, width); the caller keeps it.
function Prefix:put(batch, hidden)
  if self.full then return end
  local names, starts = names_of(self, batch), batch.starts:totable()
  local most = math.max(self.file_bytes, hidden:bytes()) -- of one file; so much again as the caller holds is no matter
  self.width = hidden:size(2)
  for i, name in ipairs(names) do
    local rows = hidden:narrow(1, starts[i] + 1, starts[i + 1] - starts[i])
    local bytes = rows:bytes()
    if not self.sequences[name] and not self.full then
      local waits = self.ram - self.waiting_bytes + bytes > self.quota - self.file_bytes
      if waits and self.directory and self.waiting_bytes + bytes > most then flush(self) end
      if waits and not self.directory then
        say_once(self, ("the %s of memory for it are used"):format(units.bytes(self.quota)))
      elseif not self.full then
        local ok, copy = pcall(rows.clone, rows)
        if not ok then -- the cache is no reason to fail
          say_once(self, tostring(copy))
        else
          self.sequences[name], self.count, self.ram = { rows = core.keep(copy) }, self.count + 1, self.ram + bytes
          if waits then
            table.insert(self.waiting, name)
            self.waiting_bytes = self.waiting_bytes + bytes
          end
        end
      end
    end
    rows:free()
  end
  if self.waiting_bytes > self.file_bytes then flush(self) end
end

-- {sequences: known; ram, disk: bytes; hits, misses: sequences asked for}
function Prefix:stats()
  return { sequences = self.count, ram = self.ram, disk = self.disk_bytes, hits = self.hits, misses = self.misses }
end

-- Frees the memory. What waits for a file is written, for a later run to find, unless the files go too: remove.
function Prefix:close(remove)
  if not remove and not self.full and self.directory then flush(self) end
  for _, e in pairs(self.sequences) do
    if e.rows then e.rows:free() end
  end
  for file in pairs(self.files) do
    if file.store then file.store:close() end
    if remove then os.remove(file.path) end
  end
  if remove and self.made then os.remove(self.directory) end -- where nothing else lies in it
  self.sequences, self.files, self.waiting, self.open_files = {}, {}, {}, {}
  self.count, self.ram, self.waiting_bytes, self.disk_bytes, self.full = 0, 0, 0, 0, true
end

return prefix
