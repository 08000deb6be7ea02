# SPDX-License-Identifier: Apache-2.0
# Every command works in a fresh clone; what is missing is set up first. All paths are relative,
# because make splits absolute ones at spaces.

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
PYTHON ?=
ROS ?=
TORCH_INDEX ?=
ARGS ?=

# The first Python that fits, or the one asked for.
FITS := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3 python3.12 python3.11)
FOUND := $(shell for p in $(CANDIDATES); do "$$p" -c "$(FITS)" 2>/dev/null && echo "$$p" && break; done)

# The wheels and a sourced ROS 2 do not mix: without ROS=system the sourced one is put aside.
ROS_USED := $(or $(ROS),$(shell cat .venv/stamps/ros 2>/dev/null),wheels)
ifeq ($(ROS_USED),wheels)
ifdef ROS_DISTRO
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH ROS_DISTRO
endif
else
MESSAGES := install/qam_msgs/share/qam_msgs/package.sh
SOURCED := if [ -f $(MESSAGES) ]; then . $(MESSAGES); fi;
endif

# ROS 2 writes its logs under HOME unless told otherwise; a home folder may be missing.
export ROS_LOG_DIR ?= $(CURDIR)/log/ros
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

.PHONY: help
help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'
	@echo
	@echo 'Variables: PYTHON=python3.12  ROS=system (a sourced ROS 2)  TORCH_INDEX=url  ARGS="..."'

.PHONY: setup
setup: ## Make .venv: pinned packages and the message package (quick when done)
	@if [ -z "$(FOUND)" ]; then \
		if command -v "$(or $(PYTHON),python3)" >/dev/null; then "$(or $(PYTHON),python3)" tools/prerequisites.py; \
		else echo "missing: Python 3.11 or 3.12 with headers (Debian/Ubuntu: sudo apt install python3-dev python3-venv)"; fi; \
		exit 1; \
	fi
	@$(SOURCED) "$(FOUND)" tools/set_up.py $(if $(ROS),--ros "$(ROS)") \
		$(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") $(if $(PYTHON),--python-asked)

.PHONY: demo
demo: setup ## Run the whole loop on real parts; ends with runs/demo/report.html
	@$(SOURCED) $(BIN)/qam demo $(ARGS)

.PHONY: test
test: setup ## Run every test this machine can; skips are listed with their reasons
	@$(SOURCED) $(BIN)/pytest $(ARGS)

.PHONY: test-ros
test-ros: setup ## Run the tests over ROS 2 only
	@$(SOURCED) $(BIN)/pytest -m ros $(ARGS)

.PHONY: test-gpu
test-gpu: setup ## Run the tests that need a GPU or TensorRT only
	@$(SOURCED) $(BIN)/pytest -m "gpu or trt" $(ARGS)

.PHONY: check
check: setup ## Lint, formatting, types, import rules, file sizes
	@failed=; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(BIN)/lint-imports --no-logo || failed=1; \
	$(BIN)/python tools/size_budget.py || failed=1; \
	$(BIN)/python tools/file_tree.py --check || failed=1; \
	test -z "$$failed"

.PHONY: fmt
fmt: setup ## Format, and mend what the linter can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/python tools/file_tree.py

.PHONY: bench
bench: setup ## Measure training, policy, loop and stream
	@$(SOURCED) for name in train policy loop stream; do $(BIN)/qam bench $$name $(ARGS) || exit 1; done

.PHONY: clean
clean: ## Remove builds and caches; .venv and runs stay
	@rm -rf build install log dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
