#!/bin/sh
# build.sh FOLDER
set -eu
cd "$(dirname "$0")"
go build -o "$1/go_hub" .
echo "$(go list -m github.com/gorilla/websocket), $(go env GOVERSION)" >"$1/version"
