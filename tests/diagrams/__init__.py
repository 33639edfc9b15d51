"""The sequence diagrams, performed on a mounted filesystem."""
