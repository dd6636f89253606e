"""`python -m pairio_cli.node_entry`: pairio-node without its script on the PATH."""

from pairio_cli.node_main import main

main()
