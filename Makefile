# Every target is a thin line over `holdfast` or pytest, which run without it as well.
INVENTORY ?= inventories/example.py
DEBIAN ?= 13
ROUNDS ?= 200
RUN = uv run --frozen
# This machine holds the secrets: what is installed here is pinned by hash as well.
PINNED = --quiet --require-hashes --requirement locks/uv.txt

.PHONY: help setup setup-lab check test drill drill-vm drill-gpu drill-serving drill-routing drill-all hostile plan gpus deploy replace verify sovereignty policy bench bench-serving docs accept-plans

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## install uv and the locked Python packages
	@command -v uv >/dev/null || python3 -m pip install $(PINNED) --break-system-packages || python3 -m pip install $(PINNED)
	@uv sync --frozen --quiet

setup-lab: setup ## install what the lab needs on this controller
	@tests/lab/setup

check: setup-lab ## the fast tier: lint, layers, types, unit tests, golden plans
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports --no-logo
	$(RUN) pytest -n 2

test: check ## everything that must hold before a merge: the fast tier, then a shorter drill
	$(RUN) python -m tests.drill --debian $(DEBIAN) --short

drill: setup-lab ## nothing -> rack -> hardened, serving, attacked, broken, lost, rebuilt -> report, in minutes
	$(RUN) python -m tests.drill --debian $(DEBIAN)

drill-vm: setup-lab ## the same on virtual machines, for parts that need a kernel of their own
	$(RUN) python -m tests.drill --vm --debian $(DEBIAN)

drill-gpu: setup-lab ## the drill of the cards: driver, caps, containers, a card that vanishes
	$(RUN) python -m tests.drill --gpu

drill-serving: setup-lab ## the drill of engines: a real vLLM on a CPU, its units, its doors, its plan
	$(RUN) python -m tests.drill --serving

drill-routing: setup-lab ## the drill of routers: every engine killed, a queue that loses nothing, 0 packets out
	$(RUN) python -m tests.drill --routing --debian $(DEBIAN)

drill-all: setup-lab ## every drill and every live test, with one summary; takes a night
	$(RUN) python -m tests.drill.every

hostile: setup-lab ## every template and operation with hostile text that the grammar accepts
	$(RUN) python -m tests.unit.hostile_site --rounds $(ROUNDS) --fetch-sshd

plan: setup ## check the inventory, and show what a deploy would change
	$(RUN) holdfast plan $(INVENTORY)

gpus: setup ## print the gpus block of each live host, ready to paste
	@$(RUN) holdfast gpus $(INVENTORY)

deploy: setup ## make the machines match the inventory
	$(RUN) holdfast deploy $(INVENTORY)

replace: setup ## replace the model of ENGINE by MODEL, or go back to the previous one
	$(RUN) holdfast replace $(INVENTORY) "$(ENGINE)" "$(MODEL)"

verify: setup ## test the machines as they are now
	$(RUN) holdfast verify $(INVENTORY)

sovereignty: setup ## show whose data can leave each host, and refused attempts
	@$(RUN) holdfast sovereignty $(INVENTORY)

policy: setup ## print the tailnet's policy for its control server
	@$(RUN) holdfast policy $(INVENTORY)

bench: setup-lab ## measure a run that changes nothing
	$(RUN) python -m tests.drill.bench

bench-serving: setup ## measure ENGINE: tokens per second, power, temperature, and whether it became slower
	$(RUN) holdfast bench $(INVENTORY) $(ENGINE)

docs: setup ## write the generated parts of docs/
	$(RUN) python -m holdfast.docs
	$(RUN) python -m holdfast.fit.cases
	$(RUN) python -m holdfast.gpu.table

accept-plans: setup ## accept the present plans as the recorded ones
	$(RUN) python -m tests.unit.plans
