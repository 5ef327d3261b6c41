"""What stands around the node and is not the node: it plays to it, sends to it, listens to it, starts it."""
