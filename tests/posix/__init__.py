"""POSIX to the letter: what a conformance suite asks, and the same calls on the machine's own filesystem."""
