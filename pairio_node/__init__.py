"""The node: carries out what the protocol decides."""
