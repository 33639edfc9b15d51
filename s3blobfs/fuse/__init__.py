"""The translation between the kernel and the filesystem."""
