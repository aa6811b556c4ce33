#!/bin/sh
# start.sh FOLDER PORT
GOMAXPROCS=1 exec "$1/go_push" "$2"
