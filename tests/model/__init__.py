"""The reference model: one state machine that does the same to a plain directory and to a filesystem of ours.

What a plain directory of the test machine answers is the definition of correct; see ``machine.py``.
"""
