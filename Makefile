# Two commands are enough: `make demo` and `make test`. Everything installs into .venv, everything written lies in .xdub.
PYTHON ?= python3.11
BIN := .venv/bin
export GX_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: demo test test-slow ui pretrain bench lint clean

# torch first and with its dependencies (pip's settings decide which build), then the lock as it stands, then ourselves.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '2.13.0')" 2>/dev/null || $(BIN)/pip install torch==2.13.0
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/.installed  ## run the whole chain on the embedded profile
	$(BIN)/xdub demo

test: .venv/.installed lint  ## static checks, then every test that is not marked slow, in two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/.installed  ## the rest: servers under load, browsers, the whole chain
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: .venv/.installed  ## the Dagster UI on the embedded profile's state
	$(BIN)/xdub ui

pretrain: .venv/.installed  ## train a base anew, beside the shipped one (hours on two cores)
	$(BIN)/python -m model_code.pretrain

bench: .venv/.installed  ## three seeds of the full embedded settings, then the benchmarks
	$(BIN)/xdub bench
	$(BIN)/python -m benchmarks.released_step  # our denoiser against the released design and diffusers' Wan
	$(BIN)/python -m benchmarks.sequence  # a step by one process, and shared out among two
	$(BIN)/python -m benchmarks.training_step  # a training step against the machine's matrix product
	$(BIN)/python -m benchmarks.long_dub  # ten minutes of video take the memory of one
	$(BIN)/python -m benchmarks.kills  # ten SIGKILLs at random moments of a small chain end with the same scores
	$(BIN)/python -m benchmarks.six_weeks  # new footage and a mishap a week, while a client asks the server

clean:
	rm -rf .venv .xdub
