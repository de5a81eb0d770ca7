-- Progress on standard error: on a terminal one line with a bar that is redrawn, elsewhere a plain line now and then.
local nearest = require "onn.nearest"
local units = require "onn.units"

local progress = {}
progress.__index = progress

local known = { "total", "label", "unit", "quiet", "after", "out", "terminal", "columns", "color", "clock", "every" }

local function wall_clock()
  local ok, system = pcall(require, "onn.core.system")
  return ok and (system.clock or system.now) or os.time
end

-- new { total = steps or nil, label = "train", unit = "steps", quiet = false, after = 0 }. What takes less than `after` seconds
-- shows nothing. The rest is for specs: out (a file),
-- terminal (boolean), columns, color, clock (a function giving seconds), every (seconds between lines or redraws).
function progress.new(options)
  nearest.check(options, known, "progress.new")
  local terminal = require "onn.core.terminal"
  local self = setmetatable({}, progress)
  self.total, self.label, self.unit = options.total, options.label or "", options.unit or ""
  self.after = options.after or 0
  self.quiet, self.out, self.clock = options.quiet, options.out or io.stderr, options.clock or wall_clock()
  self.terminal = options.terminal
  if self.terminal == nil then self.terminal = terminal.isatty(2) and os.getenv "TERM" ~= "dumb" end
  self.color = options.color
  if self.color == nil then self.color = self.terminal and (os.getenv "NO_COLOR" or "") == "" end
  self.columns = options.columns or terminal.columns
  self.every = options.every or (self.terminal and 0.1 or 10)
  self.started, self.shown, self.first = self.clock(), -math.huge, nil
  return self
end

-- The rate counts from the first update on: what came before it is loading.
local function remaining(self, done, now)
  if not self.total or done >= self.total or not self.first or done <= self.first.done then return nil end
  local rate = (done - self.first.done) / (now - self.first.time)
  return (self.total - done) / rate
end

local function cut(text, width)
  local count = 0
  for position in text:gmatch "()[^\128-\191]" do
    count = count + 1
    if count > width then return text:sub(1, position - 1) end
  end
  return text
end

local function bar(share, width)
  local eighths = math.floor(share * width * 8 + 0.5)
  local blocks = { "▏", "▎", "▍", "▌", "▋", "▊", "▉" }
  local full = math.floor(eighths / 8)
  local part = blocks[eighths % 8] or ""
  return ("█"):rep(full) .. part .. (" "):rep(width - full - (part ~= "" and 1 or 0))
end

-- Steps are read as numbers: 155/1000, not 155/1.00k.
local function exact(n) return n == math.floor(n) and n < 1e6 and ("%d"):format(n) or units.count(n) end

local function count_text(self, done)
  local text = self.total and ("%s/%s"):format(exact(done), exact(self.total)) or exact(done)
  return self.unit ~= "" and text .. " " .. self.unit or text
end

-- A line of words: label, count, share, note, time gone and time left.
local function words(self, done, note, now)
  local parts = { count_text(self, done) }
  if self.label ~= "" then table.insert(parts, 1, self.label) end
  if self.total and self.total > 0 then parts[#parts + 1] = ("%d %%"):format(100 * done / self.total) end
  if note and note ~= "" then parts[#parts + 1] = note end
  parts[#parts + 1] = units.seconds(math.max(0, now - self.started))
  local left = remaining(self, done, now)
  if left then parts[#parts + 1] = units.seconds(left) .. " left" end
  return table.concat(parts, "  ")
end

local function draw(self, done, note, now)
  local columns = type(self.columns) == "function" and self.columns() or self.columns
  local line = words(self, done, note, now)
  if self.total and self.total > 0 and columns >= 60 then
    local drawn = bar(math.min(1, done / self.total), 20)
    line = cut(line, columns - 23)
    line = (self.color and "\27[36m" .. drawn .. "\27[0m" or drawn) .. "▏ " .. line
  else
    line = cut(line, columns - 1)
  end
  self.out:write("\r\27[K", line)
  self.out:flush()
end

-- update(done, note): `done` of total is reached; `note` is any short text, such as "loss 2.31".
function progress:update(done, note)
  if self.quiet then return end
  local now = self.clock()
  if not self.first then self.first = { done = done, time = now } end
  self.done, self.note = done, note
  if now - self.shown < self.every or now - self.started < self.after then return end
  self.shown = now
  if self.terminal then
    draw(self, done, note, now)
  else
    self.out:write(words(self, done, note, now), "\n")
    self.told = done
  end
end

-- line(text): a line of its own above the bar.
function progress:line(text)
  if self.quiet then return end
  if self.terminal then self.out:write "\r\27[K" end
  self.out:write(text, "\n")
  if self.terminal and self.done then draw(self, self.done, self.note, self.clock()) end
end

-- finish(note): the last line, which stays.
function progress:finish(note)
  if self.quiet or self.finished then return end
  self.finished = true
  if self.after > 0 and self.shown == -math.huge then return end
  if self.told and self.told == self.done and not note then return end
  local line = words(self, self.done or 0, note or self.note, self.clock())
  self.out:write(self.terminal and "\r\27[K" or "", line, "\n")
  self.out:flush()
end

return progress
