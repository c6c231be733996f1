# Written for GNU make 3.81, the version macOS ships.

GO ?= go

# Folders below the root with their own go.mod, which ./... does not reach.
# pkg/orchestrator is not among them: see test-adapter. Nor is tools, which has no code.
MODULES ?= prometheus otel pgx internal/integration bench/watermill

# The tests that need PostgreSQL or start processes; narrow with either one.
INTEGRATION_PACKAGES ?= . ./ops ./importer ./orchestratortest ./internal/store ./internal/eventtable ./internal/layouttest ./internal/embedpg/... ./examples/... ./bench
INTEGRATION_RUN      ?= .

# A budget for each fuzz target: a number of inputs (2000x) or a time (30s).
# The default is a number because before Go 1.27 a time can run out with a
# false "context deadline exceeded" failure (go.dev/issue/75804).
FUZZTIME ?= 2000x

# How long make sim plays: until it is stopped, or say 1h. And from which seed.
SIMTIME ?= 8760h
SIMSEED ?= $(shell date +%s)

# gofmt of the toolchain in use: the one on PATH may be of another version.
GOFMT = "$$($(GO) env GOROOT)/bin/gofmt"

# The tool is pinned in a module of its own, so that it reaches no user's
# go.sum. A go.work file would forbid -modfile.
STATICCHECK = GOWORK=off $(GO) tool -modfile="$(CURDIR)/tools/go.mod" staticcheck

# With -j the output of the parts would mix.
.NOTPARALLEL:
.PHONY: help fmt fmt-check vet staticcheck purity lint tidy test race \
	test-integration modules test-adapter fuzz-short fuzz seeds examples check demo recording picture sim bench
.PHONY: dashboard-picture

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

check: vet lint tidy race modules test-adapter fuzz-short seeds examples test ## everything CI runs

fmt: ## rewrite the Go files with gofmt
	$(GOFMT) -w .

# Vetted, tests included, for systems on which CI does not run them.
PLATFORMS ?= darwin/arm64 windows/amd64 linux/386

vet: ## go vet, of every module for this system, and of the root for PLATFORMS
	@for dir in . $(MODULES); do \
		echo "$$dir: go vet ./..."; \
		(cd "$$dir" && $(GO) vet ./...) || exit 1; \
	done
	@for p in $(PLATFORMS); do \
		echo "GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./..."; \
		GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 $(GO) vet ./... || exit 1; \
	done

lint: fmt-check staticcheck purity ## gofmt, staticcheck, and the purity of internal/protocol

fmt-check:
	@files=$$($(GOFMT) -l .) || exit 1; \
	if [ -n "$$files" ]; then echo "not formatted, run make fmt:"; echo "$$files"; exit 1; fi

staticcheck:
	$(STATICCHECK) ./...
	@for dir in $(MODULES); do \
		echo "$$dir: staticcheck ./..."; \
		(cd "$$dir" && $(STATICCHECK) ./...) || exit 1; \
	done

purity:
	$(GO) run ./internal/lint/pure ./internal/protocol

tidy: ## check go.mod and go.sum of every module, change nothing
	@for dir in . tools $(MODULES); do \
		echo "$$dir: go mod tidy -diff && go mod verify"; \
		(cd "$$dir" && $(GO) mod tidy -diff && $(GO) mod verify) || exit 1; \
	done

test: ## go test, fast: no race detector, cached results count
	$(GO) test ./...

# -count=1 because a cached pass says nothing about a race. What is left to "test" is
# about SQL, or the same code once more: layouts, tables, migrations, privileges, names,
# encodings, hostile errors, scopes, starts, promotions, parked events, status; the documentation's programs; the mutants of
# the simulation, and more of its worlds;
# examples and the tools of tests. Few run side by side: the detector makes them slow, and
# who is slow loses leases.
SQL_TESTS = ^Test(Table|NoEventFalls|Identity|Migrate|Upgrade|Missing|Grants|Names|Encodings|Import|Unfit|Pages|Key|Hostile|Switchover|Lag|Scoped|StreamEnds|BadRow|Skipped|Cut|Final|Start|Promote|Rebuild|Retire|Retry|Parked|Park|Attack|Assum|Permanent|Plain|Secrets|Shadow|Size|Log|Defaults|Projection|Status|History|Pooler|Driver|Readme|GettingStarted|Links|Code|Messages)
RACELESS  = -e /protocol -e /layouttest -e /sim -e /orchestratortest -e /examples -e /bench -e /embedpg -e /redact
# The pure core has no threads.
race: ## go test with the race detector, where threads meet
	$(GO) test -race -count=1 -timeout 15m -parallel 2 -skip '$(SQL_TESTS)' $$($(GO) list ./... | grep -v $(RACELESS))
	$(GO) test -race -count=1 ./sim -run 'TestSeeds$$' -sim.seeds=60

test-integration: ## the tests that need PostgreSQL or start processes
	$(GO) test -count=1 -run '$(INTEGRATION_RUN)' $(INTEGRATION_PACKAGES)

modules: ## test the nested modules, pgx with the race detector: MODULES=prometheus
	@for dir in $(MODULES); do \
		case $$dir in internal/*|bench/*|otel|prometheus) race= ;; *) race=-race ;; esac; \
		echo "$$dir: go test $$race -count=1 ./..."; \
		(cd "$$dir" && $(GO) test $$race -count=1 ./...) || exit 1; \
	done

# Not every module proxy has pupsourcing. That it can't be had is the only
# reason to skip, so it is asked for where no go.mod, go.sum or flag of ours can
# be why it fails. Whatever it is that can be had, go.sum judges below. Where
# REQUIRE_MODULES is set, as in CI on GitHub, it is no reason either.
PUPSOURCING = github.com/getpup/pupsourcing
ADAPTER     = pkg/orchestrator
# Beside the one that go.mod names: since v1.2 a projection's Handle has a transaction.
PUPSOURCING_SINCE_12 ?= v1.2.0

test-adapter: ## check and test pkg/orchestrator, where pupsourcing can be downloaded
	@$(GO) version >/dev/null || exit 1; \
	version=$$(sed -n 's,^.*$(PUPSOURCING) \(v[^ ]*\).*$$,\1,p' $(ADAPTER)/go.mod); \
	if [ -z "$$version" ]; then echo "$(ADAPTER)/go.mod requires no $(PUPSOURCING)"; exit 1; fi; \
	if ! why=$$(cd / && GOWORK=off GOFLAGS= GONOSUMDB=$(PUPSOURCING) $(GO) mod download $(PUPSOURCING)@$$version 2>&1); then \
		echo "$(ADAPTER): SKIPPED, nothing of it was tested, for" $$(echo "$$why" | sed 's/^go: //;1q'); \
		test -z "$$REQUIRE_MODULES"; exit; \
	fi; \
	echo "$(ADAPTER): with $(PUPSOURCING)@$$version"; \
	cd $(ADAPTER) || exit 1; set -ex; \
	$(GO) mod tidy -diff; \
	$(GO) vet ./...; \
	$(STATICCHECK) ./...; \
	$(GO) test -race -count=1 ./...; \
	$(GO) run ./examples/basic; \
	mod=$$(mktemp -d)/go.mod; \
	$(GO) mod edit -print -require=$(PUPSOURCING)@$(PUPSOURCING_SINCE_12) -replace=$(ROOT)=$(CURDIR) >$$mod; \
	$(GO) test -modfile=$$mod -mod=mod -tags pupsourcing12 -race -count=1 ./...; \
	$(GO) run -modfile=$$mod -mod=mod -tags pupsourcing12 ./examples/basic

ROOT = github.com/getpup/pupsourcing-orchestrator

# go test fuzzes one target at a time, so they are listed first: the names of
# a package's targets, then "ok" and the package.
fuzz: FUZZTIME = 2m
fuzz: ## fuzz every target for two minutes, or make fuzz FUZZTIME=1h
fuzz-short: ## fuzz every target with the inputs of FUZZTIME
fuzz fuzz-short:
	@list=$$($(GO) test -list '^Fuzz' ./...) || { echo "$$list"; exit 1; }; \
	echo "$$list" | awk '/^Fuzz/ { names[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, names[i]; n = 0 }' | \
	while read -r pkg name; do \
		echo "fuzz $$pkg $$name $(FUZZTIME)"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null || exit 1; \
	done

# Other seeds with every commit, and the same ones for the same commit.
COMMIT_SEED = $$(( 0x$$(git rev-parse --short=8 HEAD | cut -c1-8) ))

seeds: ## simulated worlds from seeds that the commit draws: in memory, and on PostgreSQL
	$(GO) test ./sim -count=1 -run 'TestSeeds$$' -sim.seed="$(COMMIT_SEED)" -sim.seeds=150
	$(GO) test ./sim -count=1 -run 'TestSeeds$$' -sim.store=postgres -sim.seed="$(COMMIT_SEED)" -sim.seeds=15

examples: ## run the example programs, which check themselves
	$(GO) run ./examples/internal/withpostgres $(GO) run ./examples/basic
	@for name in multiple-replica-sets migration rebuild quickstart; do \
		echo "go run ./examples/$$name"; \
		$(GO) run "./examples/$$name" || exit 1; \
	done

# Its own seeds, beside those that go test ./sim plays.
sim: ## play simulated worlds on all cores, until stopped or for SIMTIME=1h
	GOGC=400 $(GO) test ./sim -run 'TestSeeds$$' -v -count=1 -timeout 0 -sim.for=$(SIMTIME) -sim.seed=$(SIMSEED)

demo: ## run the quickstart example
	$(GO) run ./examples/quickstart

picture: ## open the status page in a browser, and write what it shows to docs/status-page.png
	cd internal/integration && $(GO) test ./browser -count=1 -run '^TestPicture$$' -picture "$(CURDIR)/docs/status-page.png"

recording: ## run the quickstart example, and write what a terminal shows to docs/demo.svg
	$(GO) run ./examples/quickstart -record docs/demo.svg

# Flags: make bench BENCHFLAGS='-quick -charts /tmp/charts'. What is beside other
# libraries is a module of its own, which knows only these two, and what is beside pgx is
# in its module, which knows -quick.
bench: ## what the library costs, beside a bare loop and others: BENCHFLAGS=-quick
	$(GO) run ./bench $(BENCHFLAGS)
	cd bench/watermill && $(GO) run . $(filter -quick -json,$(BENCHFLAGS))
	cd pgx && $(GO) run ./bench $(filter -quick,$(BENCHFLAGS))

# It runs a small workload for two minutes, and draws what the dashboard's queries give.
dashboard-picture: ## draw the dashboard of real metrics into docs/dashboard.svg
	cd internal/integration && $(GO) test ./monitoring -count=1 -run 'TestPicture$$' -picture "$(CURDIR)/docs/dashboard.svg"
