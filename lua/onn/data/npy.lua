-- NumPy's .npy files, versions 1 to 3 (numpy.lib.format): a header that is a Python literal, then the numbers.
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local npy = {}

local dtypes = { f4 = "f32", f2 = "f16", i8 = "i64", i4 = "i32", u1 = "u8", i1 = "i8", b1 = "bool" }

local function bad(path, what) return nil, ("%s: %s"):format(path, what), "format" end

local function f64_to_f32(data, count)
  local values = {}
  for i = 1, count do
    local at, bits = (i - 1) * 8, 0
    for k = 6, 1, -1 do bits = bits * 256 + data:byte(at + k) end
    local high, top = data:byte(at + 7), data:byte(at + 8)
    local exponent = top % 128 * 16 + math.floor(high / 16)
    local fraction = (high % 16 * 2 ^ 48 + bits) / 2 ^ 52
    local value
    if exponent == 2047 then value = fraction == 0 and math.huge or 0 / 0
    elseif exponent == 0 then value = fraction * 2 ^ -1022
    else value = (1 + fraction) * 2 ^ (exponent - 1023) end
    values[i] = top >= 128 and -value or value
  end
  return tensors.from_table(values, "f32")
end

-- The array of a file as a tensor (f64 becomes f32); or nil, message, code.
function npy.read(path)
  local text, message, code = system.read_file(path, math.floor((tensors.memory().budget or 2 ^ 40) / 2))
  if not text then return nil, message, code end
  if text:sub(1, 6) ~= "\147NUMPY" or #text < 12 then return bad(path, "this is no .npy file") end
  local major = text:byte(7)
  if major < 1 or major > 3 then return bad(path, ("version %d of .npy is not known"):format(major)) end
  local wide, length = major > 1, text:byte(9) + 256 * text:byte(10)
  if wide then length = length + 65536 * (text:byte(11) + 256 * text:byte(12)) end
  local first = wide and 13 or 11
  local header = text:sub(first, first + length - 1)
  if #header < length then return bad(path, "the header ends past the file") end
  local order, kind = header:match "'descr'%s*:%s*'([<|>=])(%a%d+)'"
  local fortran, dims = header:match "'fortran_order'%s*:%s*(%a+)", header:match "'shape'%s*:%s*(%b())"
  if not kind or not fortran or not dims then return bad(path, "its header names no type, order or shape that is known") end
  if order == ">" then return bad(path, "numbers in big-endian order are not read") end
  if fortran ~= "False" then return bad(path, "Fortran's order is not read; save numpy.ascontiguousarray(a)") end
  local dtype, size = dtypes[kind], tonumber(kind:match "%d+")
  if not dtype and kind ~= "f8" then return bad(path, ("numbers of type '%s' are not read"):format(kind)) end
  local shape, count = {}, 1
  for n in dims:gmatch "%d+" do
    shape[#shape + 1] = tonumber(n)
    count = count * tonumber(n)
  end
  if #shape == 0 or #shape > 8 or count == 0 then return bad(path, "an array of 1 to 8 dimensions, not empty, is expected") end
  local data = text:sub(first + length)
  if #data ~= count * size then return bad(path, ("its shape wants %.0f bytes, there are %d"):format(count * size, #data)) end
  if kind == "f8" then return f64_to_f32(data, count):view(shape) end
  return tensors.from_data(data, dtype, shape)
end

return npy
