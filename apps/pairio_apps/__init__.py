"""Apps that ship with pairio."""
