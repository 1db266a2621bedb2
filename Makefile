# make run, make test, make check: each installs what it needs first. ARGS='…' goes to rmapd run.
# make vm KERNEL=6.1 CMD='rmapd doctor' NODES=1 runs a command on a Debian kernel in a guest; make test-kernels boots the whole ladder, KERNELS='6.1 7.3' a part of it.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := python3-bpfcc python3-seccomp python3-venv gcc libc6-dev libcap2-bin
LIVE_APT := chromium chromium-driver curl iproute2 prometheus stress-ng
DEB_APT := dpkg-dev debhelper
VM_APT := qemu-system-x86 busybox-static kmod make stress-ng flex bison rsync libnuma-dev libcap-dev prometheus
CROWD := tests/live/test_attacks.py::test_ten_thousand_processes_are_checked_without_accusation
KERNEL ?= 6.1
KERNELS ?= $(shell sed -n 's/^name = "\(.*\)"/\1/p' tests/vm/kernels.toml)
CMD ?= rmapd doctor
NODES ?= 1
BPF_C := $(wildcard probes/*.bpf.c probes/include/*.h) tests/support/harness.h
PREFIX ?= /usr/local
SYSCONF ?= /etc
EXTRAS ?=
# Guests that run beside each other in test-kernels: each takes one CPU and 3 GB.
GUESTS ?= 2
# Workers that run the unit tests; 0: none, one test after the other in this process.
JOBS ?= auto
SHELL_SCRIPTS = $(shell grep -rlIzP --exclude-dir={.git,.venv,build} '\A\#!.*\b(ba|da)?sh\b' .)
# Daemons of live tests become another user: their coverage data are written where everybody may.
COVERED := /tmp/rmapd-coverage
# Empty: live tests without coverage, at the daemon's own speed.
LIVE_COVERAGE ?= --cov --cov-config=tests/live/coveragerc --cov-report=
# What to run of them: LIVE_ARGS='-k exec'.
LIVE_ARGS ?=

# Install what is missing of the Debian packages named.
define install
	@missing=; for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "rmapd needs these packages, and there is no apt-get here: $$missing"; exit 2; }; \
	  $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
endef

.PHONY: run test test-kernels test-hard check graph unit live coverage vm bench cost ladder dashboards docs reference install uninstall deb test-systemd setup vm-setup clangd clean
.DELETE_ON_ERROR:

run: setup
	$(SUDO) $(VENV)/bin/rmapd run $(ARGS)

test: check live
	$(MAKE) --no-print-directory test-kernels KERNELS=6.1
	$(MAKE) --no-print-directory coverage

test-kernels: vm-setup
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_KERNELS="$(KERNELS)" $(PYTHON) -m pytest tests/vm -n $(GUESTS) --dist loadfile --durations=0 --durations-min=30 $(foreach slow,attach attacks fidelity realtime systemd,--ignore tests/vm/test_$(slow).py)

# What takes long: attaching again and again, attacks on the checker, fidelity changed under load, PREEMPT_RT.
test-hard: vm-setup
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_KERNELS="$(KERNELS)" $(PYTHON) -m pytest -s tests/vm/test_attach.py tests/vm/test_attacks.py tests/vm/test_fidelity.py tests/vm/test_realtime.py $(CROWD)

# The package and its unit under systemd: on this kernel in namespaces (three minutes), then on a Debian of its own, two boots of some minutes.
test-systemd: vm-setup
	$(call install,$(DEB_APT) mmdebstrap e2fsprogs)
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 $(PYTHON) -m pytest -s tests/vm/test_systemd.py

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(BPF_C)
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	$(VENV)/bin/shellcheck $(SHELL_SCRIPTS)
	$(MAKE) --no-print-directory unit

graph: setup
	$(PYTHON) -m tests.support.import_graph

# In random order (the seed is printed; -p randomly --randomly-seed=N repeats it), by several workers.
unit: setup
	COVERAGE_FILE=.coverage.unit $(PYTHON) -m pytest tests/unit -p randomly -n $(JOBS) --dist worksteal --cov --cov-report=term:skip-covered

live: setup
	$(call install,$(LIVE_APT))
	$(SUDO) rm -rf $(COVERED) && $(SUDO) mkdir -m 1777 $(COVERED)
	$(SUDO) env RMAPD_REQUIRE_KERNEL=$(RMAPD_REQUIRE_KERNEL) $(PYTHON) -m pytest tests/live $(LIVE_ARGS) $(LIVE_COVERAGE) --deselect $(CROWD)
	! ls $(COVERED)/data* >/dev/null 2>&1 || \
	  $(SUDO) $(VENV)/bin/coverage combine -q --data-file=.coverage.live --rcfile=tests/live/coveragerc $(COVERED)/data*

# Branch coverage of the last `make unit` and `make live` together.
coverage: setup
	$(VENV)/bin/coverage combine -q --keep --data-file=.coverage $(wildcard .coverage.unit .coverage.live)
	$(VENV)/bin/coverage report --skip-covered --sort=cover

dashboards: setup
	$(PYTHON) -m dashboards

# build/site/index.html: the documentation as a site. A broken link or anchor fails, and so does what a page would load from another host.
docs: $(VENV)/.docs
	rm -rf build/site
	$(VENV)/bin/sphinx-build -q -n -W --keep-going -c docsite -d build/site-cache . build/site
	cp build/site/README.html build/site/index.html
	$(PYTHON) -m tests.support.built_site build/site

# The pages that are made from the code: docs/reference/ and the tables of docs/CONFIGURATION.md.
reference: setup
	$(PYTHON) -m tests.support.reference

vm: vm-setup
	$(SUDO) $(PYTHON) -m tests.vm $(KERNEL) '$(CMD)' $(NODES)

bench: setup
	$(SUDO) $(PYTHON) -m tests.bench

# Instructions of each load with rmapd and without, in guests that count them; prints what changed.
cost: vm-setup
	$(SUDO) $(PYTHON) -m tests.vm.cost $(KERNELS) $(COST_ARGS)

# Each kernel that a guest can boot: coverage, the way to the gate, silence under a healthy load. A run that was stopped goes on where it was.
ladder: vm-setup
	$(SUDO) $(PYTHON) -m tests.vm.ladder $(LADDER_ARGS)

# A copy of its own, its user, the unit, and a configuration where there is none. It is not started: systemctl enable --now rmapd.
install:
	$(call install,$(APT))
	umask 022; $(SUDO) /usr/bin/python3 -m venv --clear --system-site-packages $(PREFIX)/lib/rmapd
	umask 022; $(SUDO) $(PREFIX)/lib/rmapd/bin/pip install -q --disable-pip-version-check '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(SUDO) install -d $(PREFIX)/bin $(PREFIX)/share/doc/rmapd
	$(SUDO) ln -sfn ../lib/rmapd/bin/rmapd $(PREFIX)/bin/rmapd
	$(SUDO) cp -r README.md docs dashboards/grafana dashboards/prometheus $(PREFIX)/share/doc/rmapd
	getent passwd rmapd >/dev/null || $(SUDO) useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rmapd
	sed 's,/usr/local,$(PREFIX),' systemd/rmapd.service | $(SUDO) install -D -m 644 /dev/stdin $(SYSCONF)/systemd/system/rmapd.service
	[ -e $(SYSCONF)/rmapd/rmapd.toml ] || $(SUDO) install -D -m 644 docs/rmapd.toml $(SYSCONF)/rmapd/rmapd.toml
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl daemon-reload

# Leaves the configuration, the state, and the user that owns it.
uninstall:
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --now rmapd || true
	$(SUDO) rm -rf $(PREFIX)/lib/rmapd $(PREFIX)/share/doc/rmapd $(PREFIX)/bin/rmapd $(SYSCONF)/systemd/system/rmapd.service
	$(SUDO) rm -rf /var/cache/rmapd
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl daemon-reload

# build/deb/rmapd_VERSION_amd64.deb, for Debian with the python3 of this machine.
deb: setup
	$(call install,$(DEB_APT))
	rm -rf build/deb
	mkdir -p build/deb/source
	cp -r README.md LICENSE pyproject.toml tracer probes systemd docs dashboards debian build/deb/source
	cd build/deb/source && EXTRAS=$(EXTRAS) dpkg-buildpackage -b -us -uc >../build.log 2>&1 || { tail -40 ../build.log; exit 1; }
	ls -l build/deb/*.deb

setup: $(VENV)/.installed

# Debian's python3 and not another one on the PATH: bcc is built for it.
$(VENV)/.installed: pyproject.toml Makefile
	$(call install,$(APT))
	/usr/bin/python3 -m venv --clear --system-site-packages $(VENV)
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[docs]'
	touch $@

vm-setup: setup
	$(call install,$(VM_APT))

# What clangd needs to read probes/: the header that the loader generates for each kernel, here of the unit tests' kernel.
clangd: setup
	$(PYTHON) -m tests.support.native build/clangd

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
