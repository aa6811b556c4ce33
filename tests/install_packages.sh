#!/bin/sh
# Install the Debian packages and npm modules that tests drive the server with, where that is
# allowed. Without root nothing is installed: the tests that need a missing one say so.
set -eu
cd "$(dirname "$0")"
missing=""
PATH="$PATH:/usr/sbin" # nginx and haproxy, for users too
for package in chromium curl haproxy openssl; do
    command -v "$package" >/dev/null || missing="$missing $package"
done
# Node may come from elsewhere; Debian's package is only one way to have it.
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
# The light nginx has all that is used; the others would do as well.
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v promtool >/dev/null || missing="$missing prometheus"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Programs are wanted here, not services: a package that would start its own is told not to.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "tests that need them are skipped; install them with: apt-get install$missing" >&2
    fi
fi
if command -v npm >/dev/null; then
    npm ci --silent --no-audit --no-fund --prefix clients
fi
