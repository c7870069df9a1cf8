#!/bin/sh
# Install a release beside those that are there. A release is a folder that never changes once its mark is in it: the
# programs, and a virtual environment of their own. Without a mark it is made anew.
#   install.sh RELEASE MARK PROGRAMS.tar.gz WHEELS.tar [verify]
set -eu
umask 022
home=/opt/dolmetsch
release=$home/releases/$1 mark=$2 programs=$3 archive=$4 verify=${5-}
wheels=$home/$(basename "$archive" .tar)

if [ ! -e "$wheels/.complete" ]; then
    rm -rf "$wheels"
    mkdir -p "$wheels"
    tar -xf "$archive" --no-same-owner -C "$wheels"
    sync
    touch "$wheels/.complete"
fi

rm -rf "$release"
mkdir -p "$release"
tar -xzf "$programs" --no-same-owner -C "$release"
cd "$release"
# Without pip, because a bare Debian has no python3-venv to make one with; pip's own wheel can be run as it is.
/usr/bin/python3 -m venv --without-pip venv
venv/bin/python "$(echo "$wheels"/pip-*.whl)/pip" --quiet install --no-compile --no-index --find-links="$wheels" \
    --disable-pip-version-check --root-user-action=ignore --requirement=requirements.txt
# Services may not write here, and would compile at each start. On all cores, as pip would not.
venv/bin/python -m compileall -q -j 0 venv >/dev/null || true # packages bring tests for other Pythons
venv/bin/python -m compileall -q -j 0 -x /venv/ .

# Before anything is stopped for it: whether this computer can run it, and its language packages load.
if [ "$verify" = verify ]; then
    runuser -u dolmetsch -- env HOME=/var/lib/dolmetsch XDG_DATA_HOME=/var/lib venv/bin/python -m dolmetsch.packages verify
fi

# A power cut must not leave a mark without what it marks.
sync
touch "$mark"
rm -f "$programs" "$archive"
# The next release most probably needs the same wheels, and no others.
find "$home" -maxdepth 1 -name 'wheels-*' ! -path "$wheels" -exec rm -rf {} +
