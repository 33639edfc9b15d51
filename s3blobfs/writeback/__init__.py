"""What runs behind the filesystem: uploads, reaping, recovery."""
