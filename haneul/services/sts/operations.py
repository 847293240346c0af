"""AWS Security Token Service: who am I?"""

from __future__ import annotations

from haneul.services.context import Context, Input, Output, sts


@sts
def get_caller_identity(ctx: Context, params: Input) -> Output:
    return {"UserId": ctx.caller.access_key or ctx.account, "Account": ctx.account, "Arn": ctx.caller.arn}
