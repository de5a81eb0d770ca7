-- The search as one self-contained HTML page: a ranked table, speed against memory with the Pareto front, products' rates.
local units = require "onn.units"

local page = {}

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }
local function escape(text) return (tostring(text):gsub("[&<>\"]", entities)) end

local function label(t)
  local kept = not t.recompute and "kept" or (t.blocks_kept or 0) > 0 and ("%d kept"):format(t.blocks_kept) or "rebuilt"
  local way = t.plan or t -- a candidate of the search, or a row of what it found
  local streamed = way.slots and (", %d slots of %s"):format(way.slots, way.tile and "row tiles" or way.chunk > 1
    and ("%d blocks"):format(way.chunk) or "1 block") or ""
  return ("micro-batch %d, %s, %d thread%s%s"):format(t.micro_batch, kept, t.threads, t.threads > 1 and "s" or "", streamed)
end
page.label = label

local function write(x, y, anchor, text)
  return ('<text x="%d" y="%d" text-anchor="%s">%s</text>'):format(x, y, anchor, escape(text))
end

-- A chart: draw(x, y) places a value; axes are labelled with their ends.
local function chart(title, x_title, y_title, x0, x1, y0, y1, format_x, format_y, draw)
  local width, height, left, bottom = 560, 300, 80, 40
  local function x(v) return left + (v - x0) / math.max(x1 - x0, 1e-12) * (width - left - 20) end
  local function y(v) return height - bottom - (v - y0) / math.max(y1 - y0, 1e-12) * (height - bottom - 20) end
  local parts = { ('<figure><figcaption>%s</figcaption><svg viewBox="0 0 %d %d" role="img">'):format(escape(title), width, height),
    ('<path class="axis" d="M%d 15V%dH%d"/>'):format(left, height - bottom, width - 15),
    write(left, height - 22, "start", format_x(x0)), write(width - 15, height - 22, "end", format_x(x1)),
    write(left - 6, height - bottom, "end", format_y(y0)), write(left - 6, 24, "end", format_y(y1)),
    write((left + width) / 2, height - 5, "middle", x_title), write(8, 12, "start", y_title) }
  draw(x, y, function(text) parts[#parts + 1] = text end)
  parts[#parts + 1] = "</svg></figure>"
  return table.concat(parts, "\n")
end

local function speed_and_memory(found)
  local most_speed, most_memory, ok = 0, 0, {}
  for _, t in ipairs(found.search.trials) do
    if t.outcome == "ok" then
      ok[#ok + 1] = t
      most_speed, most_memory = math.max(most_speed, t.tokens_per_s), math.max(most_memory, t.peak_mb * 1e6)
    end
  end
  return chart("Speed against memory: filled points are on the Pareto front, the ring is the choice", "peak memory", "tokens/s", 0,
    most_memory * 1.05, 0, most_speed * 1.05, units.bytes, units.count, function(x, y, put)
      local line = {}
      for _, t in ipairs(found.search.pareto) do line[#line + 1] = ("%.1f,%.1f"):format(x(t.peak_mb * 1e6), y(t.tokens_per_s)) end
      put(('<polyline class="front" points="%s"/>'):format(table.concat(line, " ")))
      for _, t in ipairs(ok) do
        local cx, cy = x(t.peak_mb * 1e6), y(t.tokens_per_s)
        put(('<circle class="%s" cx="%.1f" cy="%.1f" r="4"><title>%s: %.0f tokens/s, %s</title></circle>'):format(
          t.pareto and "on" or "off", cx, cy, escape(label(t)), t.tokens_per_s, units.bytes(t.peak_mb * 1e6)))
        if t.winner then put(('<circle class="ring" cx="%.1f" cy="%.1f" r="8"/>'):format(cx, cy)) end
      end
    end)
end

local function product_rates(p, roofline)
  local series, order, top, most = {}, {}, 0, 1
  for _, one in ipairs(p.products) do
    local key = ("%s %dx%d"):format(one.dtype, one.out, one.into)
    if not series[key] then series[key], order[#order + 1] = {}, key end
    table.insert(series[key], one)
    top, most = math.max(top, one.flops), math.max(most, one.rows)
  end
  return chart("Products on this machine, and what the chosen settings reached", "tokens at a time", "FLOP/s", 0, math.log(most), 0,
    top * 1.05, function(v) return ("%.0f"):format(math.exp(v)) end, units.flops, function(x, y, put)
      for i, key in ipairs(order) do
        local line = {}
        for _, one in ipairs(series[key]) do line[#line + 1] = ("%.1f,%.1f"):format(x(math.log(one.rows)), y(one.flops)) end
        put(('<polyline class="s%d" points="%s"><title>%s</title></polyline>'):format(i, table.concat(line, " "), escape(key)))
        put(('<text class="s%d" x="470" y="%d">%s</text>'):format(i, 190 + 16 * i, escape(key)))
      end
      local reached = roofline.flops / roofline.seconds
      put(('<path class="reached" d="M%.1f %.1fH%.1f"/><text x="90" y="%.1f">reached: %s</text>'):format(x(0), y(reached),
        x(math.log(most)), y(reached) - 5, escape(units.flops(reached))))
    end)
end

local style = [[body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#223}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #dde}
td:first-child,th:first-child{text-align:left}tr.winner{background:#e6f4ea;font-weight:600}
figure{margin:2rem 0}svg{max-width:100%;font-size:12px}figcaption{font-weight:600}
.axis{fill:none;stroke:#889}.front{fill:none;stroke:#287;stroke-dasharray:4 3}.on{fill:#287}.off{fill:none;stroke:#99a}
.ring{fill:none;stroke:#c33;stroke-width:2}.reached{stroke:#c33;stroke-dasharray:5 3}polyline{fill:none;stroke-width:2}
polyline.s1{stroke:#27a}polyline.s2{stroke:#7ac}polyline.s3{stroke:#a52}polyline.s4{stroke:#db8}
text{fill:#334}text.s1{fill:#27a}text.s2{fill:#7ac}text.s3{fill:#a52}text.s4{fill:#db8}]]

-- found: what find_optimal_config gave; p: the machine's profile. Returns the page's text.
function page.render(found, p, title)
  local s, rows = found.search, {}
  for _, t in ipairs(s.trials) do
    local measured = t.tokens_per_s and ("%.0f"):format(t.tokens_per_s) or "-"
    rows[#rows + 1] = ('<tr%s><td>%s%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td></tr>'):format(
      t.winner and ' class="winner"' or "", escape(label(t)), t.default and " (default)" or "", measured,
      t.tokens_per_s and ("%.2f"):format(t.tokens_per_s / s.default_tokens_per_s) or "-", t.peak_mb and units.bytes(t.peak_mb * 1e6) or "-",
      t.updates, escape(t.outcome .. (t.message and ": " .. t.message or "")))
  end
  local reasons, none = {}, {}
  for i, line in ipairs(s.reasons) do reasons[i] = "<li>" .. escape(line) .. "</li>" end
  for i, line in ipairs(s.no_effect) do none[i] = "<li>" .. escape(line) .. "</li>" end
  return table.concat({ '<!doctype html><html lang="en"><meta charset="utf-8">',
    "<title>" .. escape(title) .. "</title><style>" .. style .. "</style>", "<h1>" .. escape(title) .. "</h1>",
    ("<p>%s: %s parameters in %d layers. %s, %d processors, %s available.</p>"):format(escape(found.architecture.name),
      units.count(found.architecture.total_params), found.architecture.num_layers, escape(found.hardware.device_name),
      found.hardware.compute_units, units.bytes(found.hardware.available_memory_gb * 1e9)),
    "<h2>Why</h2><ul>" .. table.concat(reasons) .. "</ul>",
    "<h2>Trials</h2><table><tr><th>settings</th><th>tokens/s</th><th>of default</th><th>peak</th><th>updates</th><th>outcome</th></tr>",
    table.concat(rows, "\n"), "</table>", speed_and_memory(found), product_rates(p, s.roofline),
    "<h2>No effect</h2><ul>" .. table.concat(none) .. "</ul></html>" }, "\n") .. "\n"
end

return page
