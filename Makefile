# Every target is a thin line over `holdfast` or pytest, which run without it as well.
INVENTORY ?= inventories/example.py
DEBIAN ?= 13
ROUNDS ?= 200
RUN = uv run --frozen
# This machine holds the secrets: what is installed here is pinned by hash as well.
PINNED = --quiet --require-hashes --requirement locks/uv.txt

.PHONY: help setup setup-lab check test drill drill-vm drill-gpu drill-serving drill-routing drill-all hostile plan gpus deploy replace verify sovereignty policy bench bench-serving docs accept-plans

help: ## what there is to type
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## uv and the locked Python packages
	@command -v uv >/dev/null || python3 -m pip install $(PINNED) --break-system-packages || python3 -m pip install $(PINNED)
	@uv sync --frozen --quiet

setup-lab: setup ## what the virtual rack needs on this controller
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

drill-vm: setup-lab ## the same on virtual machines: for what needs a kernel of its own
	$(RUN) python -m tests.drill --vm --debian $(DEBIAN)

drill-gpu: setup-lab ## the drill of the cards: driver, caps, containers, a card that vanishes
	$(RUN) python -m tests.drill --gpu

drill-serving: setup-lab ## the drill of engines: a real vLLM on a CPU, its units, its doors, its plan
	$(RUN) python -m tests.drill --serving

drill-routing: setup-lab ## the drill of routers: every engine killed, a queue that keeps its word, 0 packets out
	$(RUN) python -m tests.drill --routing --debian $(DEBIAN)

drill-all: setup-lab ## every drill and every live test, and one summary: for a night
	$(RUN) python -m tests.drill.every

hostile: setup-lab ## hostile text that the grammar accepts, in every word, through every template and operation
	$(RUN) python -m tests.unit.hostile_site --rounds $(ROUNDS) --fetch-sshd

plan: setup ## what a deploy would change
	$(RUN) holdfast plan $(INVENTORY)

gpus: setup ## the gpus block of each live host, ready to paste
	@$(RUN) holdfast gpus $(INVENTORY)

deploy: setup ## make the machines match the inventory
	$(RUN) holdfast deploy $(INVENTORY)

replace: setup ## give ENGINE another MODEL: drained, proved, or back to the one before
	$(RUN) holdfast replace $(INVENTORY) "$(ENGINE)" "$(MODEL)"

verify: setup ## judge the machines as they are
	$(RUN) holdfast verify $(INVENTORY)

sovereignty: setup ## whose data can leave the machines, and what tried to
	@$(RUN) holdfast sovereignty $(INVENTORY)

policy: setup ## who may call what over the tailnet, as its control server reads it
	@$(RUN) holdfast policy $(INVENTORY)

bench: setup-lab ## the cost of a run that changes nothing
	$(RUN) python -m tests.drill.bench

bench-serving: setup ## tokens per second of ENGINE, its power and heat, and whether it became slower
	$(RUN) holdfast bench $(INVENTORY) $(ENGINE)

docs: setup ## the generated parts of docs/
	$(RUN) python -m holdfast.docs
	$(RUN) python -m holdfast.fit.cases
	$(RUN) python -m holdfast.gpu.table

accept-plans: setup ## record what a deploy would do now as what it is meant to do
	$(RUN) python -m tests.unit.plans
