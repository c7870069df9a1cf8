"""A storm: a real broker with real nodes and a trickle of jobs, and all that strangers do to an open port."""
