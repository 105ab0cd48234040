#!/usr/bin/env bash
# Builds kube-apiserver, kube-controller-manager and kube-proxy from Debian's own source package and keeps
# them under the user's cache folder. The last line of the output is the folder that holds them.
#
#   KUBEBUILDER_ASSETS   a folder with etcd and kube-apiserver (the envtest convention): used instead
#   XDG_CACHE_HOME       where the cache lies (default ~/.cache)
#   MESHLIB_KUBE_JOBS    how many compilers run at once (default: what Go chooses)
#
# Runs as root on Debian or a derivative (it installs the Go compiler); repeated runs cost nothing.
set -euo pipefail

suite=bookworm
version=1.20.2
programs=(kube-apiserver kube-controller-manager kube-proxy)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshlib/kube/$version

say() { printf 'kube: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

complete() {
  local name
  for name in "${programs[@]}"; do [[ -x $1/$name ]] || return 1; done
}

if [[ -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/kube-apiserver ]]; then
  say "using KUBEBUILDER_ASSETS"
  echo "$KUBEBUILDER_ASSETS"
  exit 0
fi
if complete "$cache"; then
  say "$version is in the cache"
  echo "$cache"
  exit 0
fi
[[ $(id -u) == 0 ]] || die "building needs root (it installs the Go compiler); or set KUBEBUILDER_ASSETS"
command -v apt-get >/dev/null || die "building needs Debian's apt-get; or set KUBEBUILDER_ASSETS"

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock -n 9 || { say "another build is running, waiting for it"; flock 9; }
if complete "$cache"; then
  echo "$cache"
  exit 0
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$here/apt_install.sh" dpkg-dev golang-go golang-github-modern-go-reflect2-dev jq rsync make patch xz-utils

started=$SECONDS
work=$(mktemp -d "${TMPDIR:-/tmp}/meshlib-kube.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Source packages are often switched off. A source list of our own, made from the mirrors this machine's apt
# already uses and kept in a private state folder, leaves the machine's configuration alone.
sources() {
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite { print "deb-src", $1, suite, "main" }' | sort -u
}
mkdir -p "$work"/{lists/partial,archives/partial,src}
sources >"$work/sources.list"
[[ -s $work/sources.list ]] || die "apt on this machine names no mirror for Debian $suite"
options=(
  -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-"
  -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work" -o "APT::Sandbox::User=root"
)
say "fetching the source package"
apt-get -qq "${options[@]}" update
(cd "$work/src" && apt-get -qq "${options[@]}" source --download-only "kubernetes/$suite")

say "unpacking"
tree=$work/tree
mkdir "$tree"
# Debian's version reads 1.20.5+really1.20.2, hence the leading star.
tar -xf "$work"/src/kubernetes_*"$version".orig.tar.[gx]z -C "$tree" --strip-components=1
tar -xf "$work"/src/kubernetes_*"$version"-*.debian.tar.[gx]z -C "$tree"
while read -r name _; do
  [[ -z $name || $name == \#* ]] || patch -d "$tree" -p1 -s <"$tree/debian/patches/$name"
done <"$tree/debian/patches/series"

# The vendored reflect2 1.0.1 walks maps in a way Go >= 1.18 no longer allows: the API server dies with SIGSEGV
# at the first JSON response that holds a map. Debian packages 1.0.2, which has the correction.
vendored=$tree/vendor/github.com/modern-go/reflect2
packaged=/usr/share/gocode/src/github.com/modern-go/reflect2
rm -f "$vendored"/*.go "$vendored"/*.s
find "$packaged" -maxdepth 1 \( -name '*.go' -o -name '*.s' \) ! -name '*_test.go' -exec cp {} "$vendored/" \;

say "compiling ${programs[*]} (about five minutes on two cores)"
if ! (
  cd "$tree"
  export HOME=$work/home GOPATH=$work/go GOCACHE=$work/gocache GOFLAGS=-mod=vendor GOPROXY=off GOTOOLCHAIN=local
  export KUBE_GIT_VERSION=v$version KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian
  export KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
  [[ -z ${MESHLIB_KUBE_JOBS:-} ]] || export GOMAXPROCS=$MESHLIB_KUBE_JOBS
  mkdir -p "$HOME"
  nice make WHAT="${programs[*]/#/cmd/}"
) >"$work/build.log" 2>&1; then
  tail -n 40 "$work/build.log" >&2
  die "the build failed"
fi

for name in "${programs[@]}"; do
  strip -s -o "$cache/$name.new" "$tree/_output/bin/$name"
  chmod 755 "$cache/$name.new"
  mv "$cache/$name.new" "$cache/$name"
done
say "built in $((SECONDS - started)) s"
echo "$cache"
