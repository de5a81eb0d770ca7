-- Carries: named tensors within a quota of memory, the rest in a scratch file. The tensor that is needed last goes first; what will be
-- needed next comes back ahead of its need.
--   local c = carries.new { quota = 64e6, scratch = "/tmp", expected = 600e6 }
--   c:put("h:3:12", hidden, 37); local hidden = c:get "h:3:12"; c:release("h:3:12"); c:clear()
-- A scratch file that fails raises one clear line; nothing is lost by it, and clear() frees all.
local nearest = require "onn.nearest"
local spills = require "onn.core.spill"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

local Carries = {}
Carries.__index = Carries

local AHEAD = 2 -- tensors that are brought back and not yet asked for; more would throw out what was just put
local UNDER_WAY = 64e6 -- bytes at most that writes under way hold, within the quota; or one tensor that is larger

local known = { "quota", "pinned", "scratch", "expected" }

local carries = {}

-- Bytes of a quota that writes under way may hold; at least one tensor, whatever its size.
function carries.under_way(quota) return math.min(UNDER_WAY, math.floor(quota / 4)) end

-- quota: bytes of memory for what is put here (math.huge: all stays); pinned: bytes of it that are in use for long (0): writes under way
-- have their share of the rest; scratch: a directory, or nil (what exceeds the quota stays in memory); expected: the most bytes that will
-- lie in the scratch file, checked against the free space before it is made.
function carries.new(options)
  nearest.check(options, known, "carries.new")
  local quota = options.quota or math.huge
  return setmetatable({ quota = quota, scratch = options.scratch, expected = options.expected, spills = quota < math.huge and options.scratch,
    entries = {}, count = 0, coming = 0, serial = 0, bytes = 0, here = {}, away = {},
    under_way = carries.under_way(quota - (options.pinned or 0)) }, Carries)
end

-- Lists of entries by due, then by serial: `here` holds what could be thrown out, `away` what lies in the file alone.
local function before(a, b)
  if a.due ~= b.due then return a.due < b.due end
  return a.serial < b.serial
end

local function place(list, e)
  local low, high = 1, #list + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if before(list[middle], e) then low = middle + 1 else high = middle end
  end
  return low
end

local function insert(list, e) table.insert(list, place(list, e), e) end
local function remove(list, e) table.remove(list, place(list, e)) end

local function open(self)
  local free, message, code = system.free_disk(self.scratch)
  if not free then return nil, message, code end
  if self.expected and free < self.expected then
    return nil, ("scratch directory %s: up to %s will be needed, %s are free"):format(self.scratch, units.bytes(self.expected), units.bytes(free)),
      "io"
  end
  self.spill, message, code = spills.open(self.scratch, self.under_way)
  return self.spill, message, code
end

-- Takes `e` out of memory, into the file if it is not there yet.
local function throw_out(self, e)
  local message, code
  if not self.spill then
    self.spill, message, code = open(self)
    if not self.spill then return nil, message, code end
  end
  if not e.ticket then
    e.ticket, message, code = self.spill:write(e.tensor)
    if not e.ticket then return nil, message, code end
  elseif e.coming then
    e.tensor, message, code = self.spill:read(e.ticket)
    if not e.tensor then return nil, message, code end
    self.coming = self.coming - 1
  end
  remove(self.here, e)
  e.tensor:free()
  e.tensor, e.coming, e.away = nil, nil, true
  self.bytes = self.bytes - e.bytes
  insert(self.away, e)
  return true
end

-- Makes room for `more` bytes, by what is needed after `due` (default: whatever is not in use). Returns whether it is there, or nil,
-- message, code.
local function make_room(self, more, due)
  if not self.spills then return true end
  local most = self.quota - (self.spill and self.under_way or 0) - more
  while self.bytes > most do
    local last = self.here[#self.here]
    if not last or due and last.due <= due then return false end
    local done, message, code = throw_out(self, last)
    if not done then return nil, message, code end
    most = self.quota - self.under_way - more -- the file is open now
  end
  return true
end

-- Begins to read what is needed next, where room can be made by what is needed later.
local function look_ahead(self)
  while self.coming < AHEAD do
    local e = self.away[1]
    if not e then break end
    local room, message, code = make_room(self, e.bytes, e.due)
    if room == nil then return nil, message, code end
    if not room or not self.spill:prefetch(e.ticket) then break end
    remove(self.away, e)
    e.coming, e.away, self.bytes, self.coming = true, nil, self.bytes + e.bytes, self.coming + 1
    insert(self.here, e)
  end
  return true
end

local function check(value, message)
  if value == nil then error(message, 0) end
  return value
end

-- Takes a contiguous tensor over, first needed at `due`: smaller is sooner. It may leave memory at once.
function Carries:put(key, tensor, due)
  if self.entries[key] then error(("carries: there is a '%s' already"):format(key), 2) end
  if not tensor:is_contiguous() then error(("carries: '%s' is a view that is not contiguous"):format(key), 2) end
  self.serial, self.count = self.serial + 1, self.count + 1
  local e = { key = key, tensor = tensors.keep(tensor), due = due, serial = self.serial, users = 0, bytes = tensor:bytes() }
  self.entries[key] = e
  self.bytes = self.bytes + e.bytes
  if not self.spills then return end
  insert(self.here, e)
  self.under_way = math.max(self.under_way, e.bytes)
  check(make_room(self, 0))
end

-- The tensor, to be read, valid until it is released.
function Carries:get(key)
  local e = self.entries[key]
  if not e then error(("carries: there is no '%s'"):format(tostring(key)), 2) end
  if e.users == 0 and self.spills then
    if not e.tensor then
      if not e.coming then check(make_room(self, e.bytes)) end
      e.tensor = tensors.keep(check(self.spill:read(e.ticket)))
    end
    if e.away then
      remove(self.away, e)
      self.bytes = self.bytes + e.bytes
    else
      remove(self.here, e)
    end
    if e.coming then self.coming = self.coming - 1 end
    e.away, e.coming = nil, nil
  end
  e.users = e.users + 1
  if self.away[1] then check(look_ahead(self)) end
  return e.tensor
end

local function forget(self, e)
  if e.tensor then e.tensor:free() end
  if e.ticket then self.spill:forget(e.ticket) end
  self.entries[e.key], self.count = nil, self.count - 1
end

-- Ends what get() began. next_due: when it is needed again; nil: never, and it is freed.
function Carries:release(key, next_due)
  local e = self.entries[key]
  if not e or e.users == 0 then error(("carries: '%s' is not in use"):format(tostring(key)), 2) end
  e.users, e.due = e.users - 1, next_due
  if e.users > 0 then return end
  if not next_due then
    self.bytes = self.bytes - e.bytes
    forget(self, e)
  elseif self.spills then
    insert(self.here, e)
    check(make_room(self, 0))
  end
end

-- Frees everything, in use or not, and closes the scratch file; also after an error. More can be put afterwards.
function Carries:clear()
  for _, e in pairs(self.entries) do
    if e.tensor then e.tensor:free() end
  end
  if self.spill then
    self.past = self:stats()
    self.spill:close()
    self.spill = nil
  end
  self.entries, self.here, self.away, self.count, self.coming, self.bytes = {}, {}, {}, 0, 0, 0
end

-- f() with another quota, none of it pinned; nothing is here before, nor afterwards. Returns what f does.
function Carries:with_quota(quota, f)
  if not self.spills then return f() end
  local quota_was, under_way_was = self.quota, self.under_way
  self.quota, self.under_way = quota, carries.under_way(quota)
  local ok, result = pcall(f)
  self:clear() -- a scratch file keeps to what may be under way when it is opened
  self.quota, self.under_way = quota_was, under_way_was
  if not ok then error(result, 0) end
  return result
end

-- {count: tensors; memory: bytes of them in memory; written, read: bytes to and from the file so far; file: the end of its last place in
-- use; held: bytes that writes under way hold; waited: seconds for the disk}
function Carries:stats()
  local past = self.past or { written = 0, read = 0, waited = 0 }
  local now = self.spill and self.spill:stats() or { written = 0, read = 0, waited = 0, held = 0, file = 0 }
  return { count = self.count, memory = self.bytes, written = past.written + now.written, read = past.read + now.read, file = now.file,
    held = now.held, waited = past.waited + now.waited }
end

return carries
