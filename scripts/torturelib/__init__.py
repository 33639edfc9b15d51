"""The torture of a mount: load, faults, kills, and the comparison of every acknowledged byte."""
