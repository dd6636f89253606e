"""The command line: `pairio` and `pairio-node`."""
