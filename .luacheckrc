std = "luajit"
max_line_length = 140
ignore = { "212/self", "212/_.*" }
files["tests"] = { std = "+busted" }
files["recipes"] = { allow_defined_top = false }
exclude_files = { "tests/fixtures", "tests/golden", "build" }
