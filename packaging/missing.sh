#!/bin/sh
# Print which of these Debian packages are missing. Where there is no apt-get, say what is missing by
# its name there, on standard error, and fail. OS_RELEASE: the file that names the distribution.
set -eu
names=$(dirname "$0")/names.tsv

# The column of names.tsv for this host, by the first word that it knows of ID and ID_LIKE.
family() {
	# shellcheck source=/dev/null
	. "${OS_RELEASE:-/etc/os-release}" 2>/dev/null || true
	for id in ${ID:-} ${ID_LIKE:-}; do
		case $id in
		debian | fedora | arch) echo "$id" && return ;;
		rhel | centos) echo rhel && return ;;
		suse | sles | opensuse*) echo suse && return ;;
		esac
	done
}

# The names there of a Debian package; its own one where the table has none.
there() {
	awk -F '\t' -v family="$1" -v package="$2" '
		NR == 1 { for (n = 1; n <= NF; n++) if ($n == family) column = n }
		$1 == package && column { print $column; found = 1 }
		END { if (!found) print package }' "$names"
}

have() {
	case $1 in
	fedora | rhel | suse) rpm -q --whatprovides "$2" ;;
	arch) pacman -Q "$2" ;;
	*) dpkg -s "$2" ;;
	esac >/dev/null 2>&1
}

family=$(family)
missing=
for package; do
	for name in $(there "$family" "$package"); do
		have "$family" "$name" || missing="$missing $name"
	done
done
missing=${missing# }
if [ -z "$missing" ] || command -v apt-get >/dev/null; then
	echo "$missing"
	exit
fi
case $family in
fedora | rhel) try="dnf install $missing" ;;
suse) try="zypper install $missing" ;;
arch) try="pacman -S $missing" ;;
*) try="install them (these are Debian's names)" ;;
esac
cat >&2 <<END
rmapd needs these packages, and there is no apt-get here: $missing
  try: $try
  to go on without them: make HAVE_ALL=1 ...
END
exit 2
