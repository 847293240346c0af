"""AWS Identity and Access Management, as far as launching asks it: there are no instance profiles here."""

from __future__ import annotations

from haneul.errors import CloudError
from haneul.services.context import OPERATIONS, Context, Input, Output

iam = OPERATIONS.of("iam")


@iam
def get_instance_profile(ctx: Context, params: Input) -> Output:
    raise CloudError(
        "NoSuchEntity",
        f"Instance Profile {params['InstanceProfileName'][:128]} cannot be found (haneul has no instance profiles).",
    )


@iam
def list_instance_profiles(ctx: Context, params: Input) -> Output:
    return {"InstanceProfiles": [], "IsTruncated": False}


@iam
def list_account_aliases(ctx: Context, params: Input) -> Output:
    return {"AccountAliases": [], "IsTruncated": False}
