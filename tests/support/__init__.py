"""What tests share: servers on loopback, a recording proxy."""
