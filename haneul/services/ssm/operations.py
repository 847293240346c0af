"""AWS Systems Manager, as far as launching asks it: public parameters that name images.

`/aws/service/debian/release/12/latest/amd64` and its like are AWS's and Debian's own names (Systems Manager User Guide,
"Calling AMI public parameters"; Debian wiki, "Cloud/AmazonEC2Image"). `/haneul/images/NAME` names any image of the catalogue.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from haneul.errors import CloudError
from haneul.services.context import OPERATIONS, Context, Input, Output
from haneul.services.ec2 import images
from haneul.store import tables
from haneul.store.database import Row

ssm = OPERATIONS.of("ssm")

_DEBIAN = re.compile(r"/aws/service/debian/(?:daily|release)/(?P<release>[0-9]{1,2})/(?:latest|[0-9.-]+)/amd64\Z")
_OWN = re.compile(r"/haneul/images/(?P<name>[a-zA-Z0-9._-]{1,64})\Z")
#: Images that AWS and its partners publish under such names, and haneul can at best stand in for.
_ELSEWHERE = re.compile(
    r"/aws/service/(?:ami-amazon-linux-latest|ami-windows-latest|canonical|debian|ecs|eks|bottlerocket|suse|redhat|marketplace|freebsd)/[\w./-]{1,512}\Z"
)


def _image(ctx: Context, name: str) -> tuple[str, float] | None:
    """(image id, seconds since the epoch) of what a parameter names, None where it names nothing here."""
    debian, own = _DEBIAN.match(name), _OWN.match(name)
    wanted = f"debian-{debian['release']}" if debian else (own["name"] if own else "")
    rows: list[Row] = ctx.tx.select(tables.images, account=tables.EVERYONE, name=wanted) if wanted else []
    if rows:
        return rows[0]["id"], rows[0]["created"]
    if not _ELSEWHERE.match(name):
        return None
    if ctx.settings.drivers == "fake" and ctx.settings.unknown_image == "refuse":
        # Fake drivers launch any image: a name has the same id every time, in each region its own.
        digest = hashlib.sha256(f"{ctx.region} {name}".encode()).hexdigest()
        return f"ami-0{digest[:16]}", 0.0
    if ctx.settings.unknown_image == "refuse":
        return None
    other = images.stand_in(ctx, "")
    return (other["id"], other["created"]) if other else None


def _parameter(ctx: Context, name: str) -> dict[str, Any] | None:
    # `name:version` names a version of a parameter; each has one here.
    found = _image(ctx, name.removesuffix(":1"))
    if found is None:
        return None
    return {
        "Name": name,
        "Type": "String",
        "Value": found[0],
        "Version": 1,
        "LastModifiedDate": found[1],
        "ARN": f"arn:aws:ssm:{ctx.region}::parameter{name}",
        "DataType": "aws:ec2:image",
    }


@ssm
def get_parameter(ctx: Context, params: Input) -> Output:
    found = _parameter(ctx, params["Name"])
    if found is None:
        raise CloudError("ParameterNotFound", f"{params['Name'][:512]} names no image of this haneul.")
    return {"Parameter": found}


@ssm
def get_parameters(ctx: Context, params: Input) -> Output:
    names = params["Names"]
    if not 1 <= len(names) <= 10:
        raise CloudError("ValidationException", "Between 1 and 10 names can be asked for.")
    found = {name: _parameter(ctx, name) for name in names}
    return {
        "Parameters": [one for one in found.values() if one is not None],
        "InvalidParameters": [name for name, one in found.items() if one is None],
    }
