# Each target installs what it needs first. `make` alone prints the targets, from the comments behind `##`.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Debian's names; packaging/names.tsv has those of other distributions. HAVE_ALL=1 asks for none.
APT := python3-bpfcc python3-seccomp python3-venv
DEV_APT := gcc libc6-dev libcap2-bin help2man
LIVE_APT := chromium chromium-driver curl iproute2 prometheus stress-ng
DEB_APT := dpkg-dev debhelper help2man lintian
VM_APT := qemu-system-x86 busybox-static kmod make stress-ng flex bison rsync libnuma-dev libcap-dev prometheus
ROOT_APT := mmdebstrap e2fsprogs cpio
ARM64_APT := $(ROOT_APT) qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross
CROWD := tests/live/test_attacks.py::test_ten_thousand_processes_are_checked_without_accusation
KERNEL ?= 6.1
# Of the guest of `make vm`, and of the package of `make deb`: arm64, or empty for this machine's.
ARCH :=
ARM64_KERNELS ?= 6.1 6.12 6.18 7.2 7.3
KERNELS ?= $(shell sed -n 's/^name = "\(.*\)"/\1/p' tests/vm/kernels.toml)
CMD ?= rmapd doctor
NODES ?= 1
BPF_C := $(wildcard probes/*.bpf.c probes/include/*.h) tests/support/harness.h
PREFIX ?= /usr/local
SYSCONF ?= /etc
EXTRAS ?=
# Guests that run beside each other in test-kernels and ladder: each takes one CPU and 3 GB.
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

# Install what is missing of the Debian packages named; where there is no apt-get, say what is missing, by its name there.
define install
	@missing=$$($(if $(HAVE_ALL),:,packaging/missing.sh $(1))) || exit 2; \
	if [ -n "$$missing" ]; then \
	  $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
endef

.PHONY: help run test test-kernels test-hard test-arm64 check graph unit live coverage vm bench cost ladder dashboards docs reference install uninstall deb rpm lock test-systemd setup dev vm-setup clangd clean
.DELETE_ON_ERROR:

help: ## print this
	@sed -nE 's/^([a-z][a-z0-9-]*):([^=]*[^#=])?## (.*)/\1\t\3/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r target text; do printf '  make %-14s%s\n' "$$target" "$$text"; done

run: setup ## run the daemon until Ctrl-C; ARGS='…' goes to rmapd run
	$(SUDO) $(VENV)/bin/rmapd run $(ARGS)

test: check live ## check, live, the guest tests on Linux 6.1, and the coverage of all
	$(MAKE) --no-print-directory test-kernels KERNELS=6.1
	$(MAKE) --no-print-directory coverage

test-kernels: vm-setup ## the guest tests on every kernel; KERNELS='6.1 7.3': on some
	$(call install,$(ARM64_APT))
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_KERNELS="$(KERNELS)" $(PYTHON) -m pytest tests/vm -n $(GUESTS) --dist loadfile --durations=0 --durations-min=30 $(foreach slow,arm64_checks arm64_faults attach attacks fidelity realtime soak systemd,--ignore tests/vm/test_$(slow).py)

test-hard: vm-setup ## what takes long: attaching again and again, attacks, fidelity under load, PREEMPT_RT, the time to failure
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_KERNELS="$(KERNELS)" $(PYTHON) -m pytest -s tests/vm/test_attach.py tests/vm/test_attacks.py tests/vm/test_fidelity.py tests/vm/test_realtime.py tests/vm/test_soak.py $(CROWD)

# ARM64_KERNELS='6.1 7.3': on some.
test-arm64: vm-setup ## guests for arm64: rmapd is whole, faults strike
	$(call install,$(ARM64_APT))
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_KERNELS="$(ARM64_KERNELS)" $(PYTHON) -m pytest -s tests/vm/test_arm64_checks.py tests/vm/test_arm64_faults.py
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 RMAPD_VM_FAULTS=6.1-arm64 $(PYTHON) -m pytest -s tests/vm/test_faults.py

# The package and its unit under systemd: on this kernel in namespaces (three minutes), then on a Debian of its own, two boots of some minutes.
test-systemd: vm-setup ## the Debian package and its unit under systemd
	$(call install,$(DEB_APT) $(ROOT_APT))
	$(SUDO) env RMAPD_REQUIRE_KERNEL=1 $(PYTHON) -m pytest -s tests/vm/test_systemd.py

check: dev ## lint, types and unit tests; no root
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(BPF_C)
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	$(VENV)/bin/shellcheck $(SHELL_SCRIPTS)
	$(MAKE) --no-print-directory unit

graph: dev ## print which package imports which
	$(PYTHON) -m tests.support.import_graph

# In random order (the seed is printed; -p randomly --randomly-seed=N repeats it), by several workers.
unit: dev ## the unit tests; JOBS=0: one after the other
	COVERAGE_FILE=.coverage.unit $(PYTHON) -m pytest tests/unit -p randomly -n $(JOBS) --dist worksteal --cov --cov-report=term:skip-covered

live: dev ## the tests on this machine's kernel, as root; LIVE_ARGS='-k exec': some
	$(call install,$(LIVE_APT))
	$(SUDO) rm -rf $(COVERED) && $(SUDO) mkdir -m 1777 $(COVERED)
	$(SUDO) env RMAPD_REQUIRE_KERNEL=$(RMAPD_REQUIRE_KERNEL) $(PYTHON) -m pytest tests/live $(LIVE_ARGS) $(LIVE_COVERAGE) --deselect $(CROWD)
	! ls $(COVERED)/data* >/dev/null 2>&1 || \
	  $(SUDO) $(VENV)/bin/coverage combine -q --data-file=.coverage.live --rcfile=tests/live/coveragerc $(COVERED)/data*

coverage: dev ## branch coverage of the last unit and live tests together
	$(VENV)/bin/coverage combine -q --keep --data-file=.coverage $(wildcard .coverage.unit .coverage.live)
	$(VENV)/bin/coverage report --skip-covered --sort=cover

dashboards: dev ## write the dashboards and alerts
	$(PYTHON) -m dashboards

# A broken link or anchor fails, and so does what a page would load from another host.
docs: $(VENV)/.docs ## the documentation as a site, build/site/index.html
	rm -rf build/site
	$(VENV)/bin/sphinx-build -q -n -W --keep-going -c docsite -d build/site-cache . build/site
	cp build/site/README.html build/site/index.html
	$(PYTHON) -m tests.support.built_site build/site

reference: dev ## write docs/reference/ and the tables of docs/CONFIGURATION.md from the code
	$(PYTHON) -m tests.support.reference

vm: vm-setup ## run CMD='rmapd doctor' on KERNEL=6.1 in a guest with NODES=1; ARCH=arm64: emulate that
	$(if $(ARCH),$(call install,$(ARM64_APT)))
	$(SUDO) $(PYTHON) -m tests.vm $(KERNEL)$(ARCH:%=-%) '$(CMD)' $(NODES)

bench: dev ## measure what rmapd costs here, an hour
	$(SUDO) $(PYTHON) -m tests.bench

cost: vm-setup ## count the instructions of each load with rmapd and without, in guests
	$(SUDO) $(PYTHON) -m tests.vm.cost $(KERNELS) $(COST_ARGS)

# A run that was stopped goes on where it was.
ladder: vm-setup ## on each kernel: coverage, the way to the gate, silence under a healthy load, faults found
	$(call install,$(ARM64_APT))
	$(SUDO) $(PYTHON) -m tests.vm.ladder --guests $(GUESTS) $(LADDER_ARGS)

# A copy of its own, its user, the unit, and a configuration where there is none. It is not started: systemctl enable --now rmapd.
install: ## install into PREFIX=/usr/local, with its user and unit; EXTRAS=otlp adds an extra
	$(call install,$(APT))
	umask 022; $(SUDO) /usr/bin/python3 -m venv --clear --system-site-packages $(PREFIX)/lib/rmapd
	umask 022; $(SUDO) $(PREFIX)/lib/rmapd/bin/pip install -q --disable-pip-version-check '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(SUDO) install -d $(PREFIX)/bin $(PREFIX)/share/doc/rmapd
	$(SUDO) ln -sfn ../lib/rmapd/bin/rmapd $(PREFIX)/bin/rmapd
	$(SUDO) cp -r README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs dashboards/grafana dashboards/prometheus $(PREFIX)/share/doc/rmapd
	getent passwd rmapd >/dev/null || $(SUDO) useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rmapd
	sed 's,/usr/local,$(PREFIX),' systemd/rmapd.service | $(SUDO) install -D -m 644 /dev/stdin $(SYSCONF)/systemd/system/rmapd.service
	[ -e $(SYSCONF)/rmapd/rmapd.toml ] || $(SUDO) install -D -m 644 docs/rmapd.toml $(SYSCONF)/rmapd/rmapd.toml
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl daemon-reload

uninstall: ## remove that; leave configuration, state, and the user that owns it
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --now rmapd || true
	$(SUDO) rm -rf $(PREFIX)/lib/rmapd $(PREFIX)/share/doc/rmapd $(PREFIX)/bin/rmapd $(SYSCONF)/systemd/system/rmapd.service
	$(SUDO) rm -rf /var/cache/rmapd
	[ ! -d /run/systemd/system ] || $(SUDO) systemctl daemon-reload

deb: ## build/deb/rmapd_VERSION_ARCH.deb, for Debian with the python3 of this machine; ARCH=arm64: for that
	$(call install,python3-venv $(DEB_APT))
	rm -rf build/deb
	mkdir -p build/deb/source
	cp -r README.md CHANGELOG.md LICENSE pyproject.toml tracer probes systemd docs dashboards debian packaging build/deb/source
	cd build/deb/source && EXTRAS=$(EXTRAS) dpkg-buildpackage -d -b $(if $(ARCH),-a $(ARCH)) -us -uc >../build.log 2>&1 || { tail -40 ../build.log; exit 1; }
	lintian --allow-root --fail-on error,warning build/deb/*.deb
	ls -l build/deb/*.deb

# With the /usr/bin/python3 of this machine. Where there is no rpmbuild, Fedora's rpm-build has it.
rpm: ## build/rpm/ARCH/rmapd-VERSION-1.ARCH.rpm, for the python3 of this machine
	$(call install,python3-venv help2man rpm)
	rm -rf build/rpm
	mkdir -p build/rpm
	version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' tracer/__init__.py) && \
	  tar -czf build/rpm/rmapd-$$version.tar.gz --transform "s,^,rmapd-$$version/," README.md CHANGELOG.md LICENSE pyproject.toml tracer probes systemd docs dashboards packaging && \
	  rpmbuild -bb --nodeps --define "_topdir $(CURDIR)/build/rpm/top" --define "_sourcedir $(CURDIR)/build/rpm" --define "_rpmdir $(CURDIR)/build/rpm" --define "rmapd_version $$version" packaging/rmapd.spec

# Versions and hashes of the wheels in the package, for every Python from 3.11 on; needs uv.
lock: ## pin the wheels of the package anew, packaging/requirements*.txt
	for extra in '' otlp report top; do \
	  uv pip compile -q pyproject.toml --universal --generate-hashes --no-annotate --python-version 3.11 --custom-compile-command 'make lock' \
	    $${extra:+--extra $$extra} -o packaging/requirements$${extra:+-$$extra}.txt || exit; \
	done

setup: $(VENV)/.installed ## what running needs: .venv and system packages; nothing is started
dev: $(VENV)/.dev ## what the tests need beside that

# Debian's python3 and not another one on the PATH: bcc is built for it. Who has the tools of tests keeps them.
$(VENV)/.installed: pyproject.toml Makefile
	$(call install,$(APT))
	/usr/bin/python3 -m venv --clear --system-site-packages $(VENV)
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[$(if $(wildcard $(VENV)/.dev),dev,top)]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(call install,$(DEV_APT))
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[docs]'
	touch $@

vm-setup: dev ## what guests need: qemu and the like
	$(call install,$(VM_APT))

# The header that the loader generates for each kernel, here of the unit tests' kernel.
clangd: dev ## what clangd needs to read probes/
	$(PYTHON) -m tests.support.native build/clangd

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
