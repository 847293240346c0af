"""The metadata service, 169.254.169.254: a small process of its own on every server.

`documents` answers a request from data (pure), `server` is the process, and the driver that starts it is
`drivers/metadata_process.py`. The process imports nothing of haneul but this package: it stays small.
"""
