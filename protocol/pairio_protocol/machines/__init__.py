"""The small machines that `core.NodeCore` is composed of. They do not import each other."""
