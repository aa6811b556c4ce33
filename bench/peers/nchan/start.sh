#!/bin/sh
# start.sh FOLDER PORT: the configuration's placeholders are filled in FOLDER.
set -eu
cd "$(dirname "$0")"
sed -e "s|FOLDER|$1|" -e "s|PORT|$2|" nginx.conf >"$1/nginx.conf"
# Started by root, nginx would give its worker to another user, who cannot write to FOLDER.
if [ "$(id -u)" = 0 ]; then
    exec /usr/sbin/nginx -p "$1" -c "$1/nginx.conf" -e stderr -g "user root;"
fi
exec /usr/sbin/nginx -p "$1" -c "$1/nginx.conf" -e stderr
