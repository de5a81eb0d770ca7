std = "luajit"
max_line_length = 160
ignore = { "212/self", "212/_.*", "581" } -- 581: `not (a <= b)` is not `a > b` where NaN may come
files["tests"] = { std = "+busted", max_line_length = 180 }
files["recipes"] = { allow_defined_top = false }
exclude_files = { "tests/fixtures", "build" }
