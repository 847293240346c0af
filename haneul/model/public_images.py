"""Images that exist at AWS under names which people look up: a cloud of fake drivers has their names and owners, and no byte of them.

Owners and names: AWS, "Find an AMI", Debian wiki "Cloud/AmazonEC2Image", Canonical "Find Ubuntu images on AWS".
"""

from __future__ import annotations

import re

from haneul.model.generation import GENERATIONS
from haneul.model.image import CatalogueImage

AMAZON, CANONICAL, DEBIAN, RED_HAT = "137112412989", "099720109477", "136693071363", "309956199498"
#: 2026-01-15, the day that their names say.
_MADE = 1768435200.0
_DAY = "20260115"


def _image(
    name: str, description: str, user: str, owner: str, alias: str = "", root: str = "/dev/xvda"
) -> CatalogueImage:
    slug = re.sub("[^a-z0-9.]+", "-", name.lower())
    return CatalogueImage(
        slug,
        description,
        "x86_64",
        8,
        _MADE,
        user,
        generations=GENERATIONS,
        owner=owner,
        alias=alias,
        called=name,
        root_device=root,
    )


PUBLIC_IMAGES = (
    _image("al2023-ami-2023.10.20260105.0-kernel-6.1-x86_64", "Amazon Linux 2023 AMI", "ec2-user", AMAZON, "amazon"),
    _image("amzn2-ami-hvm-2.0.20260105.0-x86_64-gp2", "Amazon Linux 2 AMI", "ec2-user", AMAZON, "amazon"),
    _image(
        f"ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-{_DAY}", "Canonical, Ubuntu, 22.04 LTS", "ubuntu", CANONICAL, "",
        "/dev/sda1",
    ),
    _image(
        f"ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-{_DAY}", "Canonical, Ubuntu, 24.04", "ubuntu", CANONICAL, "",
        "/dev/sda1",
    ),
    _image(f"debian-12-amd64-{_DAY}-1993", "Debian 12", "admin", DEBIAN),
    _image(f"debian-13-amd64-{_DAY}-1993", "Debian 13", "admin", DEBIAN),
    _image("RHEL-9.5.0_HVM-20260115-x86_64-0-Hourly2-GP3", "Red Hat Enterprise Linux 9", "ec2-user", RED_HAT, "", "/dev/sda1"),
)  # fmt: skip
