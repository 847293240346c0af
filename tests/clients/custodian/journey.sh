#!/bin/sh
# Cloud Custodian, unchanged: five policies over one instance, each asserted by what it wrote to its output folder.
set -eu
here=$(dirname "$0")
out=${JOURNEY_OUT:-$(mktemp -d)}
image=${JOURNEY_IMAGE:-ami-0123456789abcdef0}
export AWS_PAGER= AWS_DEFAULT_OUTPUT=text

policy() { # policy NAME: it must find this one instance, and no other
    custodian run --cache-period 0 --output-dir "$out" -p "$1" "$here/policy.yml"
    python - "$out/$1/resources.json" "$id" <<'P'
import json, sys
found = [one["InstanceId"] for one in json.load(open(sys.argv[1]))]
assert found == [sys.argv[2]], found
P
}
tag() { aws ec2 describe-tags --filters "Name=resource-id,Values=$id" "Name=key,Values=$1" --query 'Tags[].Value'; }

custodian validate "$here/policy.yml"
id=$(aws ec2 run-instances --image-id "$image" --instance-type t3.micro --disable-api-termination \
    --tag-specifications 'ResourceType=instance,Tags=[{Key=Name,Value=custodian-journey}]' --query 'Instances[0].InstanceId')
aws ec2 wait instance-running --instance-ids "$id"
policy unowned-tagged
[ "$(tag owner)" = nobody ]
policy unowned-stopped
aws ec2 wait instance-stopped --instance-ids "$id"
policy marked
tag maid_status | grep -q terminate@
policy restarted
aws ec2 wait instance-running --instance-ids "$id"
[ -z "$(tag maid_status)" ]
policy ended
aws ec2 wait instance-terminated --instance-ids "$id"
echo "custodian: ok"
