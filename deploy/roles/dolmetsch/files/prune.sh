#!/bin/sh
# Remove all but the KEEP latest releases, and print which. One that a link or a unit names stays in any case.
#   prune.sh KEEP
set -eu
keep=$1
cd /opt/dolmetsch/releases
kept=0
for name in $(ls -t); do
    kept=$((kept + 1))
    [ "$kept" -gt "$keep" ] || continue
    [ "$(readlink ../current)" != "releases/$name" ] && [ "$(readlink ../previous)" != "releases/$name" ] || continue
    ! grep -qsF "/releases/$name/" /etc/systemd/system/dolmetsch-*.service || continue
    rm -rf "./$name"
    echo "$name"
done
