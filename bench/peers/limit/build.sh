#!/bin/sh
# build.sh FOLDER
set -eu
cd "$(dirname "$0")"
cc -O2 -Wall -Wextra -o "$1/limit" limit.c -lcrypto
echo "limit.c ($(cc --version | head -n 1))" >"$1/version"
