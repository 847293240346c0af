"""Regions and availability zones."""

from __future__ import annotations

from typing import Any

from haneul.errors import CloudError, invalid
from haneul.model.region import OPT_IN, is_region, regions, zone_id, zones
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import matching


@ec2
def describe_regions(ctx: Context, params: Input) -> Output:
    wanted = params.get("RegionNames")
    for name in wanted or ():
        if not is_region(name, ctx.settings.extra_regions):
            raise invalid(name, "region", "It is not a region's name.")
    names = sorted(set(regions()) | {ctx.region}) if not wanted else sorted(set(wanted))
    items: list[dict[str, Any]] = [
        {
            "RegionName": name,
            "Endpoint": f"ec2.{name}.amazonaws.com",
            # Every region is open here: those that ask for it have been opted in to.
            "OptInStatus": "opted-in" if name in OPT_IN else "opt-in-not-required",
        }
        for name in names
    ]
    known = {"endpoint": "Endpoint", "region-name": "RegionName", "opt-in-status": "OptInStatus"}
    return {"Regions": matching(ctx, params, items, known, taggable=False)}


_ZONE_FILTERS = {
    "group-name": "GroupName",
    "message": "Messages.Message",
    "opt-in-status": "OptInStatus",
    "region-name": "RegionName",
    "state": "State",
    "zone-id": "ZoneId",
    "zone-name": "ZoneName",
    "zone-type": "ZoneType",
}


@ec2
def describe_availability_zones(ctx: Context, params: Input) -> Output:
    items: list[dict[str, Any]] = [
        {
            "ZoneName": zone,
            "ZoneId": zone_id(zone),
            "RegionName": ctx.region,
            "State": "available",
            "ZoneType": "availability-zone",
            "GroupName": f"{ctx.region}-zg-1",
            "NetworkBorderGroup": ctx.region,
            "OptInStatus": "opted-in" if ctx.region in OPT_IN else "opt-in-not-required",
            "Messages": [],
        }
        for zone in zones(ctx.region)
    ]
    for parameter, field in (("ZoneNames", "ZoneName"), ("ZoneIds", "ZoneId")):
        for one in params.get(parameter, ()):
            if one not in {item[field] for item in items}:
                raise CloudError("InvalidParameterValue", f"Invalid availability zone: [{one}]")
        if params.get(parameter):
            items = [item for item in items if item[field] in params[parameter]]
    return {"AvailabilityZones": matching(ctx, params, items, _ZONE_FILTERS, taggable=False)}
