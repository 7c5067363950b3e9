# One verb per habit; `make` lists them. Where the environment lies, when it is built and where the tools
# keep their caches is decided in tools/environment.py.

PROMPT ?= What does os.path.join do?
MODEL ?= tinydoc
OUT ?= dist
BENCH ?=

# As typed: make must not see variables of its own in "costs $5". They reach the recipe as environment.
override PROMPT := $(value PROMPT)
override MODEL := $(value MODEL)
export PROMPT MODEL VENV

ifndef PYTHON
PYTHON := $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v "$$each" && break; done)
endif
NO_PYTHON = Python 3.11 or newer is needed (on Debian or Ubuntu: apt install python3 python3-venv)
environment = @$(if $(PYTHON),exec "$(PYTHON)" tools/environment.py,$(error $(NO_PYTHON)))

.DEFAULT_GOAL := help
.PHONY: run test check soak bench docs build clean help
.NOTPARALLEL:

run: ## stream an answer of a small local model, with its energy (PROMPT="..." MODEL=...)
	$(environment) all -m ollama_adapter run -- "$$MODEL" "$$PROMPT"

test: ## run the tests; every branch of core must be covered by its own
	$(environment) dev -m coverage erase
	$(environment) dev -m coverage run -m pytest tests/core -n 2 --dist worksteal
	$(environment) dev -m coverage combine --quiet
	$(environment) dev -m coverage report
	$(environment) dev -m pytest --ignore=tests/core -n 2 --dist worksteal

check: ## format, lint, types, layers
	$(environment) dev -m ruff format --check .
	$(environment) dev -m ruff check .
	$(environment) dev -m mypy
	$(environment) dev tools/layers.py

soak: ## the same tests with their full counts, and the long ones; writes docs/soak.md
	$(environment) dev -m pytest --soak --soak-report=docs/soak.md --timeout=3600 -m "not live"

bench: ## measure, beside others, tables and plots (BENCH="--rounds 3 --case abort")
	$(environment) bench -m benchmarks $(BENCH)

docs: ## check the links of the documentation and run its examples
	$(environment) dev tools/documentation.py

build: ## make the wheel and the source archive (OUT=directory)
	$(environment) dev -m build --no-isolation --outdir "$(OUT)"

clean: ## remove the environment and what was built
	$(environment) clean
	@rm -rf dist

help: ## list the verbs
	@sed -n 's/^\([a-z]*\): ## /\1	/p' Makefile | while IFS='	' read -r verb does; do \
		printf '  make %-6s %s\n' "$$verb" "$$does"; done
