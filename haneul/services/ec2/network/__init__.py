"""Virtual private clouds. Importing this package fills the table of operations."""

from haneul.services.ec2.network import acls, dhcp, gateways, interfaces, routes, security_groups, subnets, vpcs

__all__ = ["acls", "dhcp", "gateways", "interfaces", "routes", "security_groups", "subnets", "vpcs"]
