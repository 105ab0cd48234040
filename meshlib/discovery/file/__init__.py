"""Services and endpoints from ordinary manifests in a file or folder: ``file:///path#namespace/name:port``."""
