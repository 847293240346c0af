"""haneul: the EC2 API that boots a kernel."""

__version__ = "0.1.0"
