#!/bin/sh
# build.sh FOLDER
set -eu
cd "$(dirname "$0")"
../../../tools/make_venv.sh "${PYTHON:-python3}" "$1/venv"
"$1/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
echo "$(sed 's/==/ /' requirements.txt), $("$1/venv/bin/python" --version)" >"$1/version"
