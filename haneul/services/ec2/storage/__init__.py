"""Volumes and snapshots. Importing this package fills the table of operations."""

from haneul.services.ec2.storage import volumes

__all__ = ["volumes"]
