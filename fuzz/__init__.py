"""Fuzzing: input that nobody would send on purpose, at every place where dolmetsch reads what others wrote."""
