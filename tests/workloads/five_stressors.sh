#!/usr/bin/env bash
# Run five stressors under compaction: five_stressors.sh [SECONDS]. Each ends migration entries in
# another way: moved by mremap, dropped by madvise, split and replaced by the zeropage (THP), copied
# by fork, zapped by munmap. Transparent huge pages are `always` meanwhile. No process remains.
# The stressors run without privilege: as root, stress-ng's madvise marks pages of this machine as
# broken (MADV_HWPOISON).
set -u
seconds=${1:-10}
thp=/sys/kernel/mm/transparent_hugepage/enabled
before=$(sed 's/.*\[\(.*\)\].*/\1/' "$thp")
trap 'echo "$before" >"$thp"' EXIT
echo always >"$thp"
setpriv --reuid=65534 --regid=65534 --clear-groups \
  stress-ng --mremap 1 --mremap-bytes 32M --madvise 1 --mmaphuge 1 --fork 1 --munmap 1 --timeout "$seconds" --temp-path /tmp --quiet &
stressors=$!
while kill -0 "$stressors" 2>/dev/null; do
  echo 1 >/proc/sys/vm/compact_memory
  sleep 0.5
done
wait "$stressors"
