#!/bin/sh
# Make a virtual environment. Debian keeps ensurepip in a package of its own: as root it is
# installed, else the reader is told its name.
set -eu
python=$1 folder=$2
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
        echo "$python cannot make a virtual environment; install it with: apt-get install python3-venv" >&2
        exit 1
    fi
fi
"$python" -m venv --clear "$folder"
