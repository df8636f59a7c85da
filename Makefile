# Everything that is done with vole's sources. `make help` lists it.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# An almost empty environment (env -i PATH=... make test) must do.
ifeq ($(origin HOME),undefined)
HOME := $(shell getent passwd "$$(id -u)" 2>/dev/null | cut -d: -f6)
ifeq ($(HOME),)
HOME := $(if $(TMPDIR),$(TMPDIR),/tmp)
endif
endif
export HOME
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

GO ?= go
PREFIX ?= /usr/local
DESTDIR ?=
FUZZTIME ?= 60s
COUNT ?= 1

# Version control is recorded in the binary where git can read the repository.
VCS := $(shell git status >/dev/null 2>&1 && echo true || echo false)
override GOFLAGS := $(filter-out -buildvcs=%,$(GOFLAGS)) -buildvcs=$(VCS)
export GOFLAGS

ALL := ./... ./testdata/nested/...
RIG := ./testdata/nested ./testdata/nested/fetch ./testdata/nested/gotest ./testdata/nested/run ./testdata/nested/capture ./testdata/nested/inputs ./testdata/nested/stream
GUESTS := ./testdata/nested/guests
GOTEST = bin/gotest -excused testdata/nested/excused --

# The race detector needs cgo.
RACE = $(shell command -v gcc >/dev/null 2>&1 && echo -race)

# Payload tests must run, and not skip, where /dev/kvm can be opened.
REQUIRE_KVM = $(shell test -r /dev/kvm && test -w /dev/kvm && echo VOLE_REQUIRE_KVM=1)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | sort | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: need-go
need-go:
	@command -v $(GO) >/dev/null 2>&1 || { \
		echo "vole: Go $$(sed -n 's/^go //p' go.mod) or newer is not here: get it from go.dev/dl, unpack it to /usr/local" >&2; exit 1; }

.PHONY: need-gcc
need-gcc: # the race detector links C; without root the tests run without it
	@command -v gcc >/dev/null 2>&1 || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
			echo "vole: installing gcc for the race detector"; \
			apt-get -qq update >/dev/null 2>&1; \
			DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev >/dev/null; \
		else \
			echo "vole: no gcc, so no race detector: apt-get install gcc libc6-dev" >&2; \
		fi; }

.PHONY: build
build: need-go ## build bin/vole, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/vole ./cmd/vole

.PHONY: install
install: build ## install bin/vole (and its man page) below $(DESTDIR)$(PREFIX)
	install -D -m 755 bin/vole '$(DESTDIR)$(PREFIX)/bin/vole'
	if [ -f docs/vole.1 ]; then install -D -m 644 docs/vole.1 '$(DESTDIR)$(PREFIX)/share/man/man1/vole.1'; fi

.PHONY: deps
deps: need-go ## fetch QEMU, kernels, tools and a Debian system for the tests from Debian into a cache
	@CGO_ENABLED=0 $(GO) run ./testdata/nested/fetch

.PHONY: larger-deps
larger-deps: deps # what only the larger suites use
	@CGO_ENABLED=0 $(GO) run ./testdata/nested/fetch fio net git

.PHONY: refresh
refresh: need-go ## fetch them again, in the archive's newest versions
	@CGO_ENABLED=0 $(GO) run ./testdata/nested/fetch -refresh

bin/staticcheck: testdata/tools/go.mod testdata/tools/go.sum | need-go
	CGO_ENABLED=0 GOFLAGS= $(GO) -C testdata/tools build -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck

.PHONY: rig
rig: need-go # the programs that run tests
	@CGO_ENABLED=0 $(GO) build -o bin/gotest ./testdata/nested/gotest
	@CGO_ENABLED=0 $(GO) build -o bin/nested ./testdata/nested/run

.PHONY: demo
demo: build rig ## boot a stock kernel to the built-in guest's report
	@CGO_ENABLED=0 $(GO) run ./testdata/nested/fetch kernel-cloud $$(bin/nested -check 2>/dev/null || echo qemu)
	bin/nested -timeout 3m -- bin/vole run --timeout 2m --kernel @kernel --append quiet

# `make test` takes some 15 minutes on 2 cores once its packages are there; the bounds
# of its parts, which are 2, 10, 1 and 20 minutes, end what takes far longer: an
# emulated host that locks up costs minutes, and its tests run again. Go's
# -timeout is for one package, and shorter, so that it can show what hangs.
within = timeout --verbose --foreground -k 10s $(1)

.PHONY: test
test: export VOLE_BIN := $(CURDIR)/bin/vole
test: need-gcc build rig deps ## everything that CI runs: lint, units, payloads on /dev/kvm, guests
	@$(call within,2m) $(MAKE) --no-print-directory lint
	@echo "== units and payloads$(if $(REQUIRE_KVM), on /dev/kvm,: no /dev/kvm that can be opened)"
	@eval "$$(bin/nested -unit-env)"; $(REQUIRE_KVM) $(call within,10m) $(GOTEST) $(RACE) -timeout 5m ./...
	@echo "== allocations, which the race detector changes"
	@CGO_ENABLED=0 $(call within,1m) $(GOTEST) -run '^TestNoAllocations$$' ./virtio/block ./virtio/net ./virtio/vsock ./virtio/console ./virtio/fs
	@echo "== guests"
	@CGO_ENABLED=0 $(call within,20m) $(GOTEST) -p 1 -timeout 19m $(RIG) $(GUESTS)

.PHONY: unit
unit: need-go rig ## unit tests alone, without the race detector: quick
	@eval "$$(bin/nested -unit-env)"; $(GOTEST) -short ./...

.PHONY: guests
guests: export VOLE_BIN := $(CURDIR)/bin/vole
guests: build rig deps ## the guest tests alone
	@CGO_ENABLED=0 $(GOTEST) -count=1 -timeout 15m $(GUESTS)

.PHONY: race
race: need-gcc rig ## all units with the race detector, COUNT times
	@eval "$$(bin/nested -unit-env)"; $(GO) test -race -count=$(COUNT) -timeout 30m ./...

.PHONY: fuzz
fuzz: need-go ## each fuzz target for FUZZTIME
	@for p in $$($(GO) list $(ALL)); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "== $$p $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
		done; \
	done

.PHONY: lint
lint: need-go bin/staticcheck ## gofmt, go vet, staticcheck
	@bad=$$(find . -name '*.go' -not -path './bin/*' -exec gofmt -l {} +); \
		if [ -n "$$bad" ]; then echo "not in gofmt's form (gofmt -w mends it):"; echo "$$bad"; exit 1; fi
	$(GO) vet $(ALL)
	bin/staticcheck $(ALL)

.PHONY: matrix
matrix: export VOLE_BIN := $(CURDIR)/bin/vole
matrix: export VOLE_SUITE := matrix
matrix: build rig larger-deps ## guests: every kernel, CPU count, memory size, boot way
	$(GO) test -v -count=1 -timeout 6h $(GUESTS)

.PHONY: soak
soak: export VOLE_BIN := $(CURDIR)/bin/vole
soak: export VOLE_SUITE := soak
soak: build rig larger-deps ## guests and payloads in long loops
	$(REQUIRE_KVM) $(GO) test -count=1 -timeout 6h ./...
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 1h $(RIG)
	$(GO) test -v -count=1 -timeout 12h $(GUESTS)

.PHONY: bench
bench: export VOLE_BIN := $(CURDIR)/bin/vole
bench: export VOLE_SUITE := bench
bench: build rig larger-deps ## benchmarks: exits and set-up on /dev/kvm, boots and disks beside QEMU's
	$(GO) test -run '^$$' -bench . -benchmem -timeout 1h ./...
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchtime 1x -timeout 6h $(GUESTS)

.PHONY: pictures
pictures: build deps ## draw the README's pictures of a terminal anew, from docs/pictures/*.txt
	@CGO_ENABLED=0 $(GO) build -o bin/capture ./testdata/nested/capture
	bin/capture -vole bin/vole -out docs/pictures docs/pictures/*.txt

.PHONY: clean
clean: ## remove what was built here (the cache of packages stays)
	rm -rf bin coverage.out
