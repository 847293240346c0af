#!/bin/sh
# awslocal, unchanged, from a key to an instance's end. It finds the endpoint in AWS_ENDPOINT_URL, or in LOCALSTACK_HOST.
set -eu
export DISABLE_DEPRECATION_NOTICE=1 AWS_PAGER= AWS_DEFAULT_OUTPUT=text
name=awslocal-journey
image=${JOURNEY_IMAGE:-ami-0123456789abcdef0}

awslocal sts get-caller-identity --query Account | grep -Eqx '[0-9]{12}'
awslocal ec2 create-key-pair --key-name $name --query KeyMaterial | grep -q 'PRIVATE KEY'
group=$(awslocal ec2 create-security-group --group-name $name --description "Made by awslocal" --query GroupId)
awslocal ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr 10.0.0.0/8 >/dev/null
id=$(awslocal ec2 run-instances --image-id "$image" --instance-type t3.micro --key-name $name \
    --security-group-ids "$group" --tag-specifications "ResourceType=instance,Tags=[{Key=Name,Value=$name}]" \
    --query 'Instances[0].InstanceId')
awslocal ec2 wait instance-running --instance-ids "$id"
awslocal ec2 create-tags --resources "$id" --tags Key=stage,Value=test
found=$(awslocal ec2 describe-instances --filters Name=tag:stage,Values=test Name=instance-state-name,Values=running \
    Name=tag:Name,Values=$name --query 'Reservations[].Instances[].InstanceId')
[ "$found" = "$id" ]
awslocal ec2 stop-instances --instance-ids "$id" >/dev/null
awslocal ec2 wait instance-stopped --instance-ids "$id"
awslocal ec2 terminate-instances --instance-ids "$id" >/dev/null
awslocal ec2 wait instance-terminated --instance-ids "$id"
awslocal ec2 delete-security-group --group-id "$group" >/dev/null
awslocal ec2 delete-key-pair --key-name $name >/dev/null
echo "awslocal: ok"
