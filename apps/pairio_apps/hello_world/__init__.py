"""hello_world: an app of three processors."""
