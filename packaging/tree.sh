#!/bin/sh
# Put what a package holds into a folder: tree.sh FOLDER [EXTRA,...] [MACHINE], from the root of the source.
# A virtual environment in /usr/lib/rmapd without pip, of wheels whose hashes requirements*.txt pin.
# MACHINE, such as aarch64: another than this one. Its wheels replace ours, which write the man pages.
set -eu
umask 022
root=$(realpath -m "$1")
lib=$root/usr/lib/rmapd
locks="-r packaging/requirements.txt"
for extra in $(echo "${2:-}" | tr , ' '); do
	locks="$locks -r packaging/requirements-$extra.txt"
done
export PYTHONDONTWRITEBYTECODE=1

/usr/bin/python3 -m venv --system-site-packages "$lib"
pip="$lib/bin/pip install -q --disable-pip-version-check --no-compile --no-deps"
# shellcheck disable=SC2086 # words
$pip --ignore-installed --require-hashes $locks
$pip .
"$lib/bin/python3" packaging/pages.py "$lib/bin/rmapd" "$root/usr/share"

packages=$(echo "$lib"/lib/python3.*/site-packages)
if [ "${3:-$(uname -m)}" != "$(uname -m)" ]; then
	wheels="--implementation cp --only-binary :all:"
	for glibc in manylinux2014 manylinux_2_28 manylinux_2_34; do
		wheels="$wheels --platform ${glibc}_$3"
	done
	# shellcheck disable=SC2086 # words
	$pip --target "$packages" --upgrade $wheels --require-hashes $locks
	find "$packages" -name "*$(uname -m)*.so" -delete
fi
(cd "$packages" && rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth)
# PyYAML does without its copy of libyaml; what is imported has no interpreter of its own.
rm -rf "$packages"/yaml/_yaml*.so "$lib/include" "$lib/.gitignore"
grep -rlZ --include='*.py' '^#!' "$packages" | xargs -0r sed -i '1{/^#!/d}'
find "$lib" \( -name __pycache__ -o -name direct_url.json \) -prune -exec rm -r {} +
find "$lib/bin" -type f ! -name rmapd -delete
sed -i '1s,.*,#!/usr/lib/rmapd/bin/python3,' "$lib/bin/rmapd"
sed -i '/^command/d' "$lib/pyvenv.cfg"

install -d "$root/usr/bin" "$root/usr/share/doc/rmapd"
ln -sf ../lib/rmapd/bin/rmapd "$root/usr/bin/rmapd"
cp -r README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs dashboards/grafana dashboards/prometheus "$root/usr/share/doc/rmapd"
install -D -m 644 docs/rmapd.toml "$root/etc/rmapd/rmapd.toml"
sed 's,/usr/local,/usr,' systemd/rmapd.service | install -D -m 644 /dev/stdin "$root/usr/lib/systemd/system/rmapd.service"
