#!/bin/sh
# build.sh FOLDER
set -eu
cd "$(dirname "$0")"
cp package.json package-lock.json server.mjs "$1"
npm ci --silent --no-audit --no-fund --prefix "$1"
echo "ws $(node -p "require('$1/node_modules/ws/package.json').version"), node $(node --version)" >"$1/version"
