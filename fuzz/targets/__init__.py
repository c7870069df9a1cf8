"""One file a target; its first lines say what must hold."""
