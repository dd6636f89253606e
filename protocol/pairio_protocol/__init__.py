"""What nodes say and how a node decides. Pure: no I/O, no clock, no randomness."""
