-- The states of recurrent layers between parts of a text: the cache of generation, and the memory of training on a stream.
-- Of each layer and direction {first (sequences, out), first_cell (sequences, hidden; LSTM)}, f32; zero where a text begins.
local tensors = require "onn.core.tensor"

local function zero_states(c, sequences)
  local states = {}
  for layer = 0, c.layers - 1 do
    states[layer] = { first = tensors.keep(tensors.zeros("f32", { sequences, c.out })),
      first_cell = c.cell == "lstm" and tensors.keep(tensors.zeros("f32", { sequences, c.hidden })) or nil }
  end
  return states
end

local function each(states, f)
  for layer, one in pairs(states) do for part, t in pairs(one) do f(t, layer, part) end end
end

local function rows_of(state, first, count)
  return { first = state.first:narrow(1, first, count), first_cell = state.first_cell and state.first_cell:narrow(1, first, count) }
end

local function store(state, first, last, last_cell)
  state.first:narrow(1, first, last:size(1)):copy(last)
  if state.first_cell then state.first_cell:narrow(1, first, last:size(1)):copy(last_cell) end
end

-- Generation: each slot's state. See onn.cache for what the generator asks of it.
local Cache = {}
Cache.__index = Cache

function Cache.reserve() end
function Cache.decode() end
function Cache:advance() for s = 1, self.slots do self.lengths[s] = self.lengths[s] + 1 end end
function Cache:get(layer) return rows_of(self.states[layer], 1, self.slots) end
function Cache:put(layer, _, last, last_cell) store(self.states[layer], 1, last, last_cell) end
function Cache:free() each(self.states, function(t) t:free() end) end

local Part = {}
Part.__index = Part

function Cache:part(slot, n)
  local before = self.lengths[slot]
  self.lengths[slot] = before + n
  return setmetatable({ cache = self, slot = slot, before = before, q_starts = tensors.keep(tensors.from_table({ 0, n }, "i32")) }, Part)
end

function Part:get(layer) return rows_of(self.cache.states[layer], self.slot, 1) end
function Part:put(layer, _, last, last_cell) store(self.cache.states[layer], self.slot, last, last_cell) end
function Part:free() self.q_starts:free() end

-- Training on a stream: what the last update left is what this one begins with, and no gradient goes there. A sweep may pass a stage
-- twice: it reads `now` and writes `next`, and commit() makes that the present.
local Memory = {}
Memory.__index = Memory

-- The part of a micro-batch whose sequences are first + 1 .. first + its number of them.
local View = {}
View.__index = View

function Memory:part(first, count) return setmetatable({ memory = self, first = first + 1, count = count }, View) end
function View:get(layer) return rows_of(self.memory.now[layer], self.first, self.count) end
function View:put(layer, _, last, last_cell) store(self.memory.next[layer], self.first, last, last_cell) end

function Memory:commit() self.now, self.next = self.next, self.now end
function Memory:reset() each(self.now, function(t) t:fill(0) end) end

-- What a checkpoint keeps of it: a list of {name, value}.
function Memory:saved()
  local list = {}
  each(self.now, function(t, layer, part) list[#list + 1] = { name = ("state.%d.%s"):format(layer, part), value = t } end)
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

function Memory:free()
  for _, states in ipairs { self.now, self.next } do each(states, function(t) t:free() end) end
end

local state = {}

local function one_way(model, what)
  if model.sizes.bidirectional then error(("%s: a bidirectional net reads a text from both ends: %s"):format(model.path, what), 0) end
  if model.sizes.classes then error(("%s: a classifier of sequences: %s"):format(model.path, what), 0) end
end

function state.cache(model, slots)
  one_way(model, "it cannot generate one")
  local self = setmetatable({ slots = slots, lengths = {}, states = zero_states(model.sizes, slots) }, Cache)
  for s = 1, slots do self.lengths[s] = 0 end
  return self
end

-- sequences: of an update.
function state.memory(model, sequences)
  one_way(model, "no state can be carried on (--pack stream)")
  return setmetatable({ now = zero_states(model.sizes, sequences), next = zero_states(model.sizes, sequences), sequences = sequences }, Memory)
end

return state
