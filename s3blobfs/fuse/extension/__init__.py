"""What the kernel offers and pyfuse3 does not bind, each part optional (docs/fuse-extension.md)."""
