"""Containers of Docker or Podman, driven over the engine's socket.

The part beside each job is `supervisor.container`. Images are content: `archive` reads and checks
a docker-archive, `images` hands it to the engine and keeps what is loaded within a bound.
"""
