#!/bin/sh
# start.sh FOLDER PORT
exec node "$1/server.mjs" "$2"
