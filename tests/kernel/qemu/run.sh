#!/usr/bin/env bash
# run.sh [PYTEST ARGUMENT...]: tests inside a stock Debian kernel, which has ip_vs and nftables both, and two processors.
#
# qemu emulates the machine (no /dev/kvm needed), so Python is about ten times slower than outside: functional tests
# only. The guest sees this machine's files read-only, and one folder that it may write. Runs as root on Debian.
#
#   MESHLIB_QEMU_PYTHON    the interpreter (default: python3 of PATH)
#   MESHLIB_QEMU_TIMEOUT   seconds until the machine is switched off (default 900)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshlib/linux
python=$(command -v "${MESHLIB_QEMU_PYTHON:-python3}")
[[ $# -gt 0 ]] || set -- tests/kernel/test_ipvs_companion.py

say() { printf 'qemu: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[[ $(id -u) == 0 ]] || die "root is needed: the guest sees this machine's files"
"$root/tests/components/apt_install.sh" qemu-system-x86 busybox-static kmod cpio conntrack iproute2 nftables

# The image that Debian's own meta package names now.
image=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && /linux-image-[0-9]/ { print $2; exit }')
[[ -n $image ]] || die "apt knows no linux-image-amd64; apt-get update"
version=${image#linux-image-}
kernel=$cache/$version
if [[ ! -e $kernel/complete ]]; then
  say "getting $image"
  rm -rf "$kernel"; mkdir -p "$kernel/package"
  (cd "$kernel/package" && apt-get -qq -o APT::Sandbox::User=root download "$image")
  dpkg -x "$kernel"/package/*.deb "$kernel"
  rm -r "$kernel/package"
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$kernel" "$version"
  touch "$kernel/complete"
fi

work=$(mktemp -d /var/tmp/meshlib-qemu.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{share,initrd/bin,initrd/modules,initrd/mnt}

# The first steps: what it takes to see the files outside.
cp /bin/busybox "$work/initrd/bin/"
order=()
for name in virtio_pci 9pnet_virtio 9p; do
  while read -r word path _; do
    [[ $word == insmod ]] || continue
    file=$(basename "$path")
    [[ -e $work/initrd/modules/$file ]] && continue
    cp "$path" "$work/initrd/modules/"
    order+=("$file")
  done < <(PATH=$PATH:/usr/sbin:/sbin modprobe -d "$kernel" -S "$version" --show-depends "$name")
done
{
  echo '#!/bin/busybox sh'
  for file in "${order[@]}"; do echo "/bin/busybox insmod /modules/$file"; done
  options=trans=virtio,version=9p2000.L,msize=512000
  echo "/bin/busybox mount -t 9p -o $options,ro,cache=loose hostroot /mnt"
  for each in 'proc proc' 'sysfs sys' 'devtmpfs dev' 'tmpfs run' 'tmpfs tmp'; do
    echo "/bin/busybox mount -t ${each% *} ${each% *} /mnt/${each#* }"
  done
  echo "/bin/busybox mkdir /mnt/run/share; /bin/busybox mount -t 9p -o $options share /mnt/run/share"
  echo 'exec /bin/busybox switch_root /mnt /bin/sh /run/share/inside.sh'
} >"$work/initrd/init"
chmod +x "$work/initrd/init"
(cd "$work/initrd" && find . | cpio -o -H newc --quiet | gzip) >"$work/initrd.gz"

{
  echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run'
  echo 'mkdir -p /run/netns; ip link set lo up'
  printf "printf '#!/bin/sh\\\\nexec /usr/sbin/modprobe -d %q \"\$@\"\\\\n' >/run/modprobe; chmod +x /run/modprobe\n" "$kernel"
  echo 'echo /run/modprobe >/proc/sys/kernel/modprobe'
  for name in ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh nf_conntrack nf_conntrack_netlink nf_tables nft_chain_nat nft_ct \
    nft_fib_inet nft_numgen nft_hash nft_masq nft_reject_inet nft_nat nft_redir veth dummy; do
    printf '/run/modprobe %s 2>/dev/null || echo "no module %s"\n' "$name" "$name"
  done
  printf 'cd %q\n' "$root"
  printf 'export PYTHONPATH=%q PYTHONDONTWRITEBYTECODE=1 MESHLIB_REQUIRE=kernel HYPOTHESIS_STORAGE_DIRECTORY=/tmp/h\n' "$root"
  printf '%q -m pytest -q -p no:cacheprovider --timeout=0' "$python"
  printf ' %q' "$@"
  echo
  echo 'echo $? >/run/share/exit; sync; echo o >/proc/sysrq-trigger; sleep 60'
} >"$work/share/inside.sh"

say "booting Linux $version"
timeout "${MESHLIB_QEMU_TIMEOUT:-900}" qemu-system-x86_64 -m 2048 -smp 2 -nographic -no-reboot \
  -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd.gz" -append 'console=ttyS0 panic=-1 quiet' \
  -fsdev local,id=r,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=r,mount_tag=hostroot \
  -fsdev "local,id=s,path=$work/share,security_model=none" -device virtio-9p-pci,fsdev=s,mount_tag=share \
  </dev/null || true
[[ -e $work/share/exit ]] || die "the guest did not come to its end"
exit "$(cat "$work/share/exit")"
