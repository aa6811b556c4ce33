#!/bin/sh
# start.sh FOLDER PORT
ulimit -n "$(ulimit -H -n)"
exec "$1/venv/bin/python" "$(dirname "$0")/server.py" "$2"
