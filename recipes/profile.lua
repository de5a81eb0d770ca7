-- profile: what this machine can do, measured in a few seconds and kept
local cli = require "onn.cli"
local json = require "onn.core.json"
local profile = require "onn.profile"
local units = require "onn.units"

local opt = cli.parse {
  name = "profile",
  summary = "Measures products, memory and disk through onn's own kernels and files. Kept until the machine or onn changes.",
  example = "onn profile --fresh",
  options = { { "fresh", help = "measure again, whatever is kept" } },
}
if opt.dry_run then
  cli.note("would measure products, threads, memory and disk, and keep the figures in %s", profile.cache_directory())
  if opt.json then cli.json { cache = profile.cache_directory() } end
  os.exit(0)
end

local p = profile.get { all = true, fresh = opt.fresh, note = function(name) cli.note("measuring %s", name) end }
local hardware = profile.hardware(p)
if opt.json then
  for key, value in pairs(hardware) do p[key] = value end
  p.shares, p.times = nil, nil
  cli.json(p)
  os.exit(0)
end

cli.print(("%s, %d processors (%s), %s of memory, %s available"):format(hardware.device_name, hardware.compute_units,
  hardware.compute_capability, units.bytes(hardware.total_memory_gb * 1e9), units.bytes(hardware.available_memory_gb * 1e9)))

local rows, by_rows = {}, {}
for _, one in ipairs(p.products) do
  local row = by_rows[one.rows]
  if not row then
    row = { tokens = one.rows }
    by_rows[one.rows], rows[#rows + 1] = row, row
  end
  row[("%s %dx%d"):format(one.dtype, one.out, one.into)] = one.flops / 1e9
end
table.sort(rows, function(a, b) return a.tokens < b.tokens end)
local columns, seen = { { "tokens", format = "%d" } }, {}
for _, one in ipairs(p.products) do
  local key = ("%s %dx%d"):format(one.dtype, one.out, one.into)
  if not seen[key] then seen[key], columns[#columns + 1] = true, { key, format = "%.0f" } end
end
cli.print "\nproducts, GFLOP/s (a weight by so many tokens at a time)"
cli.print(cli.table(rows, columns))

cli.print "\nmemory, GB/s (decode: one token by a weight of that size; copy: read and written)"
local function giga(value) return ("%.1f"):format(value / 1e9) end
cli.print(cli.table(p.memory, { { "bytes", title = "size", format = units.bytes, align = "right" }, { "read", format = giga },
  { "decode", format = giga }, { "copy", format = giga } }))

cli.print ""
for _, one in ipairs(p.threads) do
  cli.print(("threads   %s with %d: %s"):format(one.dtype, one.threads, units.flops(one.flops)))
end
if p.disk ~= json.null then
  cli.print(("disk      %s warm (in the page cache)%s, %s written"):format(units.rate(p.disk.warm),
    p.disk.cold and ", " .. units.rate(p.disk.cold) .. " cold" or "", units.rate(p.disk.write)))
else
  cli.print "disk      not measured: no room"
end
local doubt = profile.doubt(p)
if doubt then cli.print("note      " .. doubt) end
