"""The copy of the index in the bucket: what is sent, how two writers are kept apart, how it comes back."""
