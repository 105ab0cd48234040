"""The ways into a kernel: ipvs, nftables, iptables, and userspace where there is no way in."""
