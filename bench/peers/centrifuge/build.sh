#!/bin/sh
# build.sh FOLDER: with the Go packages of Debian, which are source trees and no modules.
set -eu
cd "$(dirname "$0")"
GO111MODULE=off GOPATH=/usr/share/gocode go build -o "$1/centrifuge" .
version="$(dpkg-query -W -f '${Version}' golang-github-centrifugal-centrifuge-dev)"
echo "github.com/centrifugal/centrifuge $version (Debian), $(go env GOVERSION)" >"$1/version"
