#!/usr/bin/env bash
# Gets the real components: Debian packages (as root on Debian) and the Kubernetes programs. What it cannot get it
# names in one line; where MESHLIB_REQUIRE names that lane, it fails instead. `install.sh bench` gets what only the
# benches need, nothing else.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

required() { [[ ,${MESHLIB_REQUIRE:-}, == *,$1,* ]]; }
left_out() {
  echo "components: lane '$1' left out: $2"
  if required "$1"; then exit 1; fi
}
has() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

can_install=no
if [[ $(id -u) == 0 ]] && has apt-get && has dpkg-query; then can_install=yes; fi

# lane PROGRAM... -- PACKAGE...
packages() {
  local lane=$1; shift
  local programs=()
  while [[ $1 != -- ]]; do programs+=("$1"); shift; done
  shift
  local name missing=()
  for name in "${programs[@]}"; do has "$name" || missing+=("$name"); done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ $can_install == no ]]; then
    left_out "$lane" "${missing[*]} not found; install the packages $* (as root on Debian, make components does)"
  elif ! "$here/apt_install.sh" "$@"; then
    left_out "$lane" "apt could not install $*"
  fi
}

if [[ ${1:-} == bench ]]; then
  packages bench haproxy nginx -- haproxy nginx-light
  exit 0
fi

packages dns knotd unbound dnsmasq -- knot unbound dnsmasq-base
packages kernel ip nft conntrack iptables -- iproute2 nftables conntrack iptables
packages kernel promtool -- prometheus
packages metrics prometheus promtool -- prometheus
packages kernel linux.uml modprobe ipvsadm -- user-mode-linux kmod ipvsadm
[[ -x ${KUBEBUILDER_ASSETS:-}/etcd ]] || packages kube etcd -- etcd-server

# Programs on PATH are good enough where nothing can be built.
if [[ $can_install == yes || -n ${KUBEBUILDER_ASSETS:-} ]] || ! has kube-apiserver; then
  "$here/build_kube.sh" >/dev/null ||
    left_out kube "no kube-apiserver; set KUBEBUILDER_ASSETS, or run make components as root on Debian"
fi
