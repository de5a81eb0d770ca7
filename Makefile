# `make` builds build/onn; `make help` lists the rest. Nothing is written outside $(BUILD).
VERSION := 0.1.0
PREFIX  ?= /usr/local
BUILD   ?= build
LINTS   := lint-lua lint-c lint-cppcheck

ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?= -O2 -g
KERNEL_CFLAGS := $(if $(filter file,$(origin CFLAGS)),$(CFLAGS) -O3,-O3 $(CFLAGS))
ifeq ($(MAKELEVEL)$(filter -j% --jobserver%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif

# --- packages (Debian 12) ---------------------------------------------------------------------------------------------
PACKAGES := gcc libc6-dev pkg-config libluajit-5.1-dev libcjson-dev libpcre2-dev libutf8proc-dev libedit-dev libdnnl-dev \
            libxxhash-dev libstb-dev lua-argparse lua-filesystem lua-posix
TEST_PACKAGES := lua-busted lua-check cppcheck
FUZZ_PACKAGES := clang libclang-rt-14-dev

# --- sources ----------------------------------------------------------------------------------------------------------
# What lies in kernels/cpu is compiled once for each instruction set; these files only once.
CPU_ONCE := $(wildcard kernels/cpu/cpu.c kernels/cpu/dnnl.c)
CPU_EACH := $(filter-out $(CPU_ONCE),$(wildcard kernels/cpu/*.c))
COMMON   := $(wildcard kernels/*.c) $(CPU_ONCE) $(wildcard host/*.c)

ISAS            := sse41 avx2 avx512 avx512_bf16 amx_bf16
ISA_sse41       := -msse4.1
ISA_avx2        := -mavx2 -mfma -mf16c -mbmi2
ISA_avx512      := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512
ISA_avx512_bf16 := $(ISA_avx512) -mavx512bf16
ISA_amx_bf16    := $(ISA_avx512_bf16) -mamx-tile -mamx-bf16 -mprfchw

OBJECTS := $(COMMON:%.c=$(BUILD)/%.o) $(foreach isa,$(ISAS),$(CPU_EACH:kernels/cpu/%.c=$(BUILD)/cpu/$(isa)/%.o))

# --- flags ------------------------------------------------------------------------------------------------------------
# Asked only when something is compiled: on a bare system pkg-config arrives with `deps`.
LUAJIT_CFLAGS = $(eval LUAJIT_CFLAGS := $$(shell pkg-config --cflags luajit))$(LUAJIT_CFLAGS)
LUAJIT_LIBS   = $(eval LUAJIT_LIBS := $$(shell pkg-config --libs luajit))$(LUAJIT_LIBS)
WARNINGS := -Wall -Wextra
BASE     = -std=gnu11 -D_GNU_SOURCE= $(WARNINGS) -fopenmp -Ikernels -Ihost -I$(BUILD) -MMD -MP $(SANITIZE)
LIBS     = $(LUAJIT_LIBS) -lcjson -lpcre2-8 -lutf8proc -ledit -ldnnl -lxxhash -lm -lpthread -ldl

.PHONY: all objects demo test install uninstall bench lint $(LINTS) sanitize fuzz clean help deps deps-test deps-fuzz FORCE
.DELETE_ON_ERROR:
all: $(BUILD)/onn
objects: $(OBJECTS)

# --- building ---------------------------------------------------------------------------------------------------------
# One short line for each command; V=1 shows them whole.
say = $(if $(V),,@echo '  $(1) $(@:$(BUILD)/%=%)' && )
$(BUILD)/onn: $(OBJECTS)
	@echo "cuda: none, cpu only"
	$(call say,link   )$(CC) $(CFLAGS) $(SANITIZE) -fopenmp -rdynamic $(LDFLAGS) -o $@ $^ $(LIBS)

define compile
@mkdir -p $(@D)
$(call say,compile)$(CC) $(BASE) $(1) $(CPPFLAGS) $(2) -c -o $@ $<
endef

$(BUILD)/kernels/%.o: kernels/%.c | deps
	$(call compile,,$(CFLAGS))
$(BUILD)/host/%.o: host/%.c | deps
	$(call compile,$(LUAJIT_CFLAGS),$(CFLAGS))
$(BUILD)/host/main.o: $(BUILD)/version.h

define isa_rule
$(BUILD)/cpu/$(1)/%.o: kernels/cpu/%.c | deps
	$$(call compile,-DISA=$(1) $$(ISA_$(1)),$$(KERNEL_CFLAGS))
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))

$(BUILD)/version.h: FORCE | deps
	@mkdir -p $(@D)
	@revision=$$(git describe --always --dirty --abbrev=10 2>/dev/null || true); \
	printf '#define ONN_VERSION "%s"\n#define ONN_REVISION "%s"\n#define ONN_MULTIARCH "%s"\n' \
	    '$(VERSION)' "$$revision" "$$($(CC) -print-multiarch 2>/dev/null || true)" > $@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

-include $(OBJECTS:.o=.d)

# --- packages: one dpkg-query when nothing is missing; NODEPS=1 skips it ----------------------------------------------
define ensure
@missing=; have=$$(dpkg-query -W -f='|$${Package}:$${db:Status-Status}' $(1) 2>/dev/null)'|'; \
for p in $(1); do case "$$have" in *"|$$p:installed|"*) ;; *) missing="$$missing $$p";; esac; done; \
if [ -z "$$missing" ] || [ -n "$(NODEPS)" ]; then exit 0; fi; \
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then \
    echo "this is no Debian; install what answers to these packages, then run make NODEPS=1:$$missing" >&2; exit 1; fi; \
sudo=; if [ "$$(id -u)" != 0 ]; then sudo='sudo '; fi; \
install="$${sudo}apt-get update && $${sudo}apt-get install -y --no-install-recommends$$missing"; \
echo "$$install"; eval "$$install"
endef

deps:
	$(call ensure,$(PACKAGES))
deps-test: | deps
	$(call ensure,$(TEST_PACKAGES))
deps-fuzz: | deps
	$(call ensure,$(FUZZ_PACKAGES))

# --- programs ---------------------------------------------------------------------------------------------------------
demo: all
	$(BUILD)/onn recipes/demo.lua

BENCH ?= recipes/benchmark.lua --batch 1,8
bench: all
	$(BUILD)/onn $(BENCH)

# --- checking ---------------------------------------------------------------------------------------------------------
# SPECS= names files or folders to run instead of all; the last line is `N passed, N failed`.
JOBS    ?= $(shell nproc)
TIMEOUT ?= 300
C_TESTS := $(patsubst tests/%.c,$(BUILD)/asan/tests/%,$(wildcard tests/*_test.c tests/*/*_test.c))

test: all deps-test sanitize
	@$(BUILD)/onn tests/run.lua --jobs $(JOBS) --timeout $(TIMEOUT) \
	    $(if $(SPECS),,$(foreach l,$(filter-out lint-c,$(LINTS)),--check '$(l)=$(MAKE) -s $(l) BUILD=$(BUILD)') \
	    $(foreach t,$(C_TESTS),--check '$(t:$(BUILD)/asan/%=%)=$(SANITIZER_OPTIONS) $(t)') \
	    --check 'host specs under sanitizers=$(SANITIZER_OPTIONS) $(BUILD)/asan/onn tests/run.lua tests/host') $(SPECS)

lint: $(LINTS)
lint-lua: | deps-test
	luacheck --quiet --no-color lua recipes tests
lint-c: | deps
	@$(MAKE) -s --no-print-directory BUILD=$(BUILD)/lint WARNINGS='-Wall -Wextra -Werror' CFLAGS='-O1 -g0' KERNEL_CFLAGS='-O1 -g0' \
	    ISAS='sse41 amx_bf16' objects
lint-cppcheck: | deps-test
	cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr --enable=warning,portability,performance \
	    --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches --suppress=unknownMacro --suppress=invalidFunctionArg \
	    --suppress=invalidPointerCast --suppress=readdirCalled --suppress=duplicateAssignExpression \
	    -D_GNU_SOURCE -D__x86_64__ -DISA=avx2 --library=posix -Ikernels -Ihost \
	    -j $$(nproc) kernels host

# The whole program and the C tests (tests/**/*_test.c, one program each) under ASan and UBSan, in $(BUILD)/asan; warnings are errors, so
# that `test` needs no lint-c.
SANITIZER_OPTIONS := ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 OMP_NUM_THREADS=2
sanitize: | deps
	$(MAKE) --no-print-directory BUILD=$(BUILD)/asan SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' \
	    WARNINGS='-Wall -Wextra -Werror' CFLAGS='-O1 -g' KERNEL_CFLAGS='-O1 -g' $(BUILD)/asan/onn $(C_TESTS)

$(BUILD)/tests/%_test: tests/%_test.c $(filter-out $(BUILD)/host/main.o,$(OBJECTS)) | deps
	@mkdir -p $(@D)
	$(call say,compile)$(CC) $(BASE) $(LUAJIT_CFLAGS) $(CPPFLAGS) $(CFLAGS) -MF $@.d -o $@ $< $(filter %.o,$^) $(LDFLAGS) $(LIBS)

# libFuzzer targets, tests/fuzz/*_fuzz.c with their dictionaries, FUZZ_SECONDS for each. The first line names what is linked in,
# so that clang needs no OpenMP: /* with: kernels/status.c host/json.c */
FUZZ_SECONDS ?= 30
FUZZ := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*_fuzz.c))
fuzz: $(FUZZ)
	@for target in $(FUZZ); do mkdir -p $$target.corpus && \
	    dict=tests/fuzz/$$(basename $$target).dict; if [ -f $$dict ]; then dict=-dict=$$dict; else dict=; fi; \
	    $$target -max_total_time=$(FUZZ_SECONDS) $$dict -artifact_prefix=$$target- $$target.corpus || exit 1; done
$(BUILD)/fuzz/%: tests/fuzz/%.c FORCE | deps-fuzz $(BUILD)/version.h
	@mkdir -p $(@D)
	clang -std=gnu11 -D_GNU_SOURCE= -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	    -Ikernels -Ihost -I$(BUILD) $(LUAJIT_CFLAGS) -o $@ $< $(shell sed -n '1s|^/\* with: \(.*\) \*/$$|\1|p' $<) $(LIBS)

# --- installing -------------------------------------------------------------------------------------------------------
install: all
	mkdir -p "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/onn"
	rm -rf "$(DESTDIR)$(PREFIX)/share/onn/lua" "$(DESTDIR)$(PREFIX)/share/onn/recipes"
	install -m 755 $(BUILD)/onn "$(DESTDIR)$(PREFIX)/bin/onn"
	cp -R lua recipes "$(DESTDIR)$(PREFIX)/share/onn/"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/onn"
	rm -rf "$(DESTDIR)$(PREFIX)/share/onn"

clean:
	rm -rf $(BUILD)

help:
	@echo 'make             builds $(BUILD)/onn, after installing missing Debian packages'
	@echo 'make demo        runs recipes/demo.lua'
	@echo 'make test        lint, C tests under ASan and UBSan, specs; SPECS=tests/lua to run some, JOBS=4 to run several at once'
	@echo 'make lint        luacheck, compiler warnings as errors, cppcheck'
	@echo 'make sanitize    $(BUILD)/asan/onn and the C tests under ASan and UBSan'
	@echo 'make fuzz        libFuzzer targets, FUZZ_SECONDS=30 each'
	@echo 'make bench       speeds of a small built-in model; BENCH="recipes/benchmark.lua MODEL" for another'
	@echo 'make install     PREFIX=/usr/local DESTDIR='
	@echo 'make uninstall'
	@echo 'make clean'
	@echo 'variables: CC CFLAGS LDFLAGS BUILD; NODEPS=1 leaves packages alone; V=1 shows whole commands'
