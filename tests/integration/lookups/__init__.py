"""`make bench-dht`: what a look-up by job id takes, and what it costs to be found."""
