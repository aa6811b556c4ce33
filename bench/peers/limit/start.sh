#!/bin/sh
# start.sh FOLDER PORT
exec "$1/limit" "$2"
