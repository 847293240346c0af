"""The EC2 operations. Importing this package fills the table of operations."""

from haneul.services.ec2 import absent, account, images, instances, keypairs, network, regions, storage, tags

__all__ = ["absent", "account", "images", "instances", "keypairs", "network", "regions", "storage", "tags"]
