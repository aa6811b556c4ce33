#!/bin/sh
# Install what the peers need from Debian, as root, and build every peer that can be built.
# nginx is not started, neither now nor with the machine.
set -eu
cd "$(dirname "$0")/../.."
packages=""
command -v cc >/dev/null || packages="$packages gcc libc6-dev"
[ -e /usr/include/openssl/sha.h ] || packages="$packages libssl-dev"
command -v go >/dev/null || packages="$packages golang-go"
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || packages="$packages nginx-core libnginx-mod-nchan"
# The centrifuge library's package does not name all that its sources import.
for package in centrifugal-centrifuge centrifugal-protocol fzambia-eagle igm-sockjs-go mna-redisc; do
    package="golang-github-$package-dev"
    dpkg-query -W "$package" >/dev/null 2>&1 || packages="$packages $package"
done
if [ -n "$packages" ]; then
    if [ "$(id -u)" = 0 ]; then
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod +x "$policy"
        fi
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
        case "$packages" in
            *nginx*) systemctl disable nginx >/dev/null 2>&1 || true ;;
        esac
    else
        echo "peers that need them are left out; install them with: apt-get install$packages" >&2
    fi
fi
"${PYTHON:-.venv/bin/python}" -m bench.peers --build
