# dolmetsch: what to type. Needs make, python3 (3.11 or later) with venv, and the package registry.
PYTHON ?= python3
export BIND
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help env dev lock run node test test-deploy test-chaos test-aarch64 simulate check bench bench-all screenshots model clean
.PHONY: env-deploy deploy add-node upgrade rollback rotate-keys status reset wheelhouse

help:
	@echo "make run                        broker, node, dashboard and HTTP gateway on this computer; the bot if it has a token"
	@echo "make run BIND=tcp://0.0.0.0     the same, and other computers may join: python3 broker.py invite"
	@echo "make node JOIN='...'            a node only, on another computer, with what the invitation says"
	@echo "make deploy, make add-node HOST=pi4.local, make upgrade, make status    a box of Pis: see deploy/README.md"
	@echo "make test                       the whole test suite"
	@echo "make test-deploy                deployment on real systemd hosts (containers); needs root"
	@echo "make test-chaos                 real programs, killed, stopped and cut off at random for ten minutes; needs root"
	@echo "make test-aarch64               what is committed, installed and run on an emulated Pi's processor; needs root and qemu"
	@echo "make simulate                   ten thousand worlds in virtual time, each decided by one number"
	@echo "make check                      ruff, mypy, bandit, who imports whom, licences, and known flaws in packages"
	@echo "make lock                       the requirements.txt anew from the requirements.in; ARGS=--upgrade for newer ones"
	@echo "make bench                      what this board does, as one table to share: two minutes"
	@echo "make bench-all                  throughput, cold start, overhead and the gateways, with their limits and peers"
	@echo "make screenshots                the pictures of the dashboard in docs/images/; needs chromium"

env: .venv/installed
dev: .venv/installed-dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "dolmetsch needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "cannot make .venv: on Debian, apt install python3-venv"; exit 1; }

.venv/installed: .venv/bin/python requirements.txt
	@echo "installing requirements.txt into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# What is installed, for each Python and architecture, with hashes. uv asks the index that it is configured for, which is not
# written down. A version stays until its .in file wants another one, or ARGS=--upgrade, or ARGS='--upgrade-package NAME'.
LISTS = requirements deploy/pip requirements-dev deploy/requirements deploy/requirements-dev models/recipe/requirements

lock: dev
	@for list in $(LISTS); do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command 'make lock' $(ARGS) $$list.in --output-file $$list.txt || exit 1; done
	@$(MAKE) --no-print-directory dev
	@$(BIN)/python -m tests.supply licences

# The waiter prints one line once the cluster can translate, and ends; honcho runs the programs of the Procfile.
run: env
	@test -z "$(BIND)" || $(BIN)/python broker.py --bind "$(BIND)" init
	@programs="broker node dashboard http"; if $(BIN)/python gateway_discord.py --has-token; then programs="$$programs discord"; \
		else echo "no DISCORD_TOKEN: the Discord gateway is not started (see .env.example)"; fi; \
		$(BIN)/python gateway_cli.py --wait 120 & waiter=$$!; trap 'kill $$waiter 2>/dev/null; true' EXIT; \
		$(BIN)/honcho start $$programs

# Without JOIN: for the broker that was joined before, or one on this computer.
node: env
	@exec $(BIN)/python node.py $(if $(JOIN),--join "$(JOIN)") $(if $(BROKER),--broker "$(BROKER)")

# Three at a time: most of a test is waiting for other processes. A file's tests stay together, as they share a cluster.
test: dev
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# A package from parallel text: make model CORPUS=pairs.tsv VALIDATION=validation.tsv OUT=folder; see models/recipe/README.md.
# On a CPU: matrix kernels are kept for all shapes of batch, and memory for tensors is kept too, instead of being asked for
# anew in each step. jemalloc, where it is installed (apt install libjemalloc2), is faster at that than glibc.
JEMALLOC = $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
MODEL_ENV = ONEDNN_PRIMITIVE_CACHE_CAPACITY=20000 $(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC) \
	MALLOC_CONF=dirty_decay_ms:-1$(,)muzzy_decay_ms:-1,MALLOC_MMAP_THRESHOLD_=33554432 \
	MALLOC_TRIM_THRESHOLD_=1000000000000 MALLOC_TOP_PAD_=268435456)
, := ,
model: .venv-model/installed
	@test -n "$(CORPUS)" -a -n "$(VALIDATION)" || { echo "say from what: make model CORPUS=pairs.tsv VALIDATION=validation.tsv"; exit 2; }
	@$(MODEL_ENV) .venv-model/bin/python -m models.recipe train --corpus $(CORPUS) --validation $(VALIDATION) \
		--work $(or $(WORK),.model) --out $(or $(OUT),.model/out) $(ARGS)

.venv-model/installed: models/recipe/requirements.txt requirements.txt
	@test -x .venv-model/bin/python || $(PYTHON) -m venv .venv-model
	@echo "installing models/recipe/requirements.txt into .venv-model (once; torch is large)"
	@.venv-model/bin/python -m pip install --quiet --disable-pip-version-check -r models/recipe/requirements.txt
	@touch $@

# Ten thousand small worlds with crashes, lost connections and slow disks; SEEDS=100 for fewer.
simulate: env
	@$(BIN)/python -m simulation --seeds $(or $(SEEDS),10000) --jobs $$(nproc)

test-deploy: dev env-deploy
	@$(BIN)/python -m pytest -q tests/deploy

# Real processes in network namespaces, with kills, full disks, cut links; CHAOS_MINUTES=60 for more.
test-chaos: dev
	@$(BIN)/python -m pytest -q tests/chaos

# Debian for aarch64 under qemu, made once; AARCH64_SUITES=bookworm,trixie for Python 3.13 too.
test-aarch64: dev
	@$(BIN)/python -m pytest -q tests/aarch64

check: dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy dolmetsch dashboard simulation broker.py node.py gateway_cli.py gateway_discord.py gateway_http.py
	@$(BIN)/bandit -q -c pyproject.toml -r dolmetsch dashboard simulation deploy models/recipe *.py
	@$(BIN)/python -m pytest -q tests/test_arrows.py tests/test_supply.py
	@$(BIN)/python -m tests.supply audit

bench: env
	@$(BIN)/python bench/pi.py

bench-all: env
	@$(BIN)/python bench/throughput.py
	@$(BIN)/python bench/coldstart.py
	@$(BIN)/python bench/overhead.py
	@$(BIN)/python bench/reactions.py
	@$(BIN)/python bench/http.py
	@$(BIN)/python bench/dashboard.py

# ---- a box of Pis, by Ansible: see deploy/README.md ----

INVENTORY ?= deploy/inventory.ini
PLAY = $(inventory_there) ANSIBLE_CONFIG=deploy/ansible.cfg .venv-deploy/bin/ansible-playbook -i $(INVENTORY) $(ARGS)
inventory_there = test -e $(INVENTORY) || { echo "say which computers: cp deploy/inventory.example.ini $(INVENTORY), and put their names in"; exit 2; };

env-deploy: .venv-deploy/installed

.venv-deploy/installed: deploy/requirements.txt requirements.txt
	@test -x .venv-deploy/bin/python || $(PYTHON) -m venv .venv-deploy
	@echo "installing deploy/requirements.txt into .venv-deploy (once)"
	@.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/requirements.txt
	@touch $@

deploy: env-deploy
	@$(PLAY) deploy/site.yml

add-node: env-deploy
	@test -n "$(HOST)" || { echo "say which: make add-node HOST=pi4.local"; exit 2; }
	@$(PLAY) -e host=$(HOST) $(if $(ADDRESS),-e address=$(ADDRESS)) deploy/add_node.yml

upgrade: env-deploy
	@$(PLAY) deploy/upgrade.yml

rollback: env-deploy
	@$(PLAY) deploy/rollback.yml

rotate-keys: env-deploy
	@$(PLAY) deploy/rotate_keys.yml

status: env-deploy
	@$(PLAY) deploy/status.yml

# Needs CONFIRM=yes: it takes dolmetsch from all computers of the inventory.
reset: env-deploy
	@$(PLAY) $(if $(CONFIRM),-e confirm=$(CONFIRM)) deploy/reset.yml

# For computers without internet: the wheels for 64-bit Pis and PCs with Debian 12 and 13, or KINDS=x86_64-cp311.
wheelhouse: env-deploy
	@.venv-deploy/bin/python deploy/wheelhouse.py $(KINDS)

screenshots: dev
	@$(BIN)/python bench/screenshots.py

clean:
	rm -rf .venv .venv-deploy .venv-model .pytest_cache .mypy_cache .ruff_cache .hypothesis
