-- Arrays of images with a class each: IDX (MNIST's), .npy, and safetensors with `x` and `y`. x (n, c, h, w), or (n, h, w) of one channel.
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local arrays = {}

local function number(text, at, bytes) -- big-endian
  local n = 0
  for i = at, at + bytes - 1 do n = n * 256 + text:byte(i) end
  return n
end

-- A tensor of IDX's unsigned bytes; or nil, message, code.
local function read_idx(path)
  local text, message, code = system.read_file(path)
  if not text then return nil, message, code end
  local dims = #text >= 4 and text:byte(4) or 0
  if #text < 4 + 4 * dims or text:sub(1, 2) ~= "\0\0" or dims < 1 or dims > 4 then
    return nil, path .. ": this is no IDX file (images are a folder for each class, IDX, .npy, or safetensors with x and y)", "format"
  end
  if text:byte(3) ~= 8 then return nil, ("%s: IDX data of type %d; unsigned bytes (8) are read"):format(path, text:byte(3)), "unsupported" end
  local shape, count = {}, 1
  for d = 1, dims do
    shape[d] = number(text, 1 + 4 * d, 4)
    count = count * shape[d]
  end
  if #text - 4 - 4 * dims ~= count then
    return nil, ("%s: %d bytes of data, its header says %d"):format(path, #text - 4 - 4 * dims, count), "format"
  end
  return tensors.from_data(text:sub(5 + 4 * dims), "u8", shape)
end

local npy_types = { ["|u1"] = { "u8", 1 }, ["<f4"] = { "f32", 4 }, ["<i4"] = { "i32", 4 }, ["<i8"] = { "i64", 8 } }

-- A tensor of a .npy file (version 1 to 3; u1, i4, i8, f4, in C's order); or nil, message, code.
local function read_npy(path)
  local text, message, code = system.read_file(path)
  if not text then return nil, message, code end
  if text:sub(1, 6) ~= "\147NUMPY" or #text < 12 then return nil, path .. ": this is no .npy file", "format" end
  local wide = text:byte(7) > 1
  local length = text:byte(9) + 256 * text:byte(10) + (wide and 65536 * text:byte(11) + 16777216 * text:byte(12) or 0)
  local first = (wide and 12 or 10) + length + 1
  if first > #text + 1 then return nil, path .. ": the file ends within its header", "format" end
  local header = text:sub(wide and 13 or 11, first - 1)
  local kind, order, sizes = header:match "'descr':%s*'([^']*)'", header:match "'fortran_order':%s*(%a+)", header:match "'shape':%s*%(([^)]*)%)"
  local dtype = npy_types[kind or ""]
  if not dtype or order ~= "False" or not sizes then
    return nil, ("%s: %s in %s order; u1, i4, i8 or f4 (little-endian) in C's order are read"):format(path, tostring(kind),
      order == "True" and "Fortran's" or "no known"), "unsupported"
  end
  local shape, count = {}, 1
  for size in sizes:gmatch "%d+" do
    shape[#shape + 1] = tonumber(size)
    count = count * tonumber(size)
  end
  if #shape > 8 or (#text - first + 1) ~= count * dtype[2] then
    return nil, ("%s: %d bytes of data, its header says %d"):format(path, #text - first + 1, count * dtype[2]), "format"
  end
  return tensors.from_data(text:sub(first), dtype[1], shape)
end

-- The labels' file that goes with the images': train-images-idx3-ubyte and train-labels-idx1-ubyte, x.npy and y.npy.
local function labels_of(path)
  local directory, name = path:match "^(.*/)([^/]*)$"
  directory, name = directory or "", name or path
  local other
  if name:find "%.npy$" then
    other = name:gsub("x(%.npy)$", "y%1")
  else
    other = name:gsub("images", "labels"):gsub("idx3", "idx1"):gsub("idx4", "idx1")
  end
  return other ~= name and directory .. other or nil
end

local function read_pair(path, read)
  local x, message, code = read(path)
  if not x then return nil, message, code end
  local other = labels_of(path)
  if not other then return nil, path .. ": the file's name should end in x.npy (labels: y.npy) or hold 'images' (labels: 'labels')", "argument" end
  local y
  y, message, code = read(other)
  if not y then return nil, message, code end
  return x, y
end

local function read_store(path)
  local store, message, code = stores.open(path)
  if not store then return nil, message, code end
  local found = {}
  for _, name in ipairs { "x", "y" } do
    local key = name == "y" and not store:info "y" and "labels" or name
    if not store:info(key) then
      store:close()
      return nil, ("%s: there is no tensor '%s'"):format(path, name), "format"
    end
    found[name], message, code = store:read(key)
    if not found[name] then return nil, message, code end
  end
  store:close()
  return found.x, found.y
end

-- read(path) -> x u8 or f32 (n, c, h, w), labels as a list of numbers from 0; or nil, message, code.
function arrays.read(path)
  local x, y, code
  if path:find "%.safetensors$" then x, y, code = read_store(path)
  elseif path:find "%.npy$" then x, y, code = read_pair(path, read_npy)
  else x, y, code = read_pair(path, read_idx) end
  if not x then return nil, y, code end
  local shape = x:shape()
  if #shape == 3 then shape = { shape[1], 1, shape[2], shape[3] } end
  if #shape ~= 4 or x:numel() == 0 then
    return nil, ("%s: x is (%s); (n, channels, height, width) is expected"):format(path, table.concat(x:shape(), ", ")), "format"
  end
  if #y:shape() ~= 1 or y:numel() ~= shape[1] then
    return nil, ("%s: y is (%s); a class for each of the %d images is expected"):format(path, table.concat(y:shape(), ", "), shape[1]), "format"
  end
  if x:dtype() ~= "u8" and x:dtype() ~= "f32" then x = x:to "f32" end
  return tensors.keep(x:contiguous():view(shape)), y:to("i64"):totable()
end

return arrays
