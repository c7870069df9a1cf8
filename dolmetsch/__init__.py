"""dolmetsch: translate Discord messages on a box of Raspberry Pis, with no cloud."""

__version__ = "0.1.0"
