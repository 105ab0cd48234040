#!/usr/bin/env bash
# apt_install.sh PACKAGE...: installs what is missing, without starting any packaged daemon as a service.
set -euo pipefail

missing=()
for package in "$@"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
[[ $(id -u) == 0 ]] || { echo "apt: installing needs root: ${missing[*]}" >&2; exit 1; }

# One installation at a time: two runs would fight over dpkg's lock and over the policy file below.
exec 8>/var/lock/meshlib-apt.lock
flock 8

# While this file exists, maintainer scripts may not start services (exit status 101: forbidden by policy).
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi

echo "apt: installing ${missing[*]}" >&2
log=$(mktemp)
install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
    install --no-install-recommends "${missing[@]}" >"$log" 2>&1
}
if ! { install || { apt-get -qq update && install; }; }; then
  tail -n 20 "$log" >&2
  exit 1
fi
rm -f "$log"
