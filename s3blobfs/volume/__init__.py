"""What belongs to a volume beside its index: its files, its lock, and its description in the bucket."""
