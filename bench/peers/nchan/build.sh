#!/bin/sh
# build.sh FOLDER: nothing to build, Debian's packages are used as they are.
set -eu
dpkg-query -W -f '${Package} ${Version}, ' nginx-core libnginx-mod-nchan | sed 's/, $//' >"$1/version"
