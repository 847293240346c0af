// AWS SDK for JavaScript, unchanged, from a key to an instance's end.
// It reads AWS_ENDPOINT_URL, AWS_REGION and the keys from its environment by itself.
import assert from "node:assert/strict";
import {
  AuthorizeSecurityGroupIngressCommand, CreateKeyPairCommand, CreateSecurityGroupCommand, CreateTagsCommand,
  DeleteKeyPairCommand, DeleteSecurityGroupCommand, DescribeInstancesCommand, DescribeSecurityGroupsCommand,
  EC2Client, RebootInstancesCommand, RunInstancesCommand, StartInstancesCommand, StopInstancesCommand,
  TerminateInstancesCommand, paginateDescribeInstances, waitUntilInstanceRunning, waitUntilInstanceStatusOk,
  waitUntilInstanceStopped, waitUntilInstanceTerminated,
} from "@aws-sdk/client-ec2";

const name = "js-journey";
const image = process.env.JOURNEY_IMAGE ?? "ami-0123456789abcdef0";
const ec2 = new EC2Client({});
const patience = { client: ec2, maxWaitTime: 120, minDelay: 1, maxDelay: 2 };

const key = await ec2.send(new CreateKeyPairCommand({ KeyName: name, KeyType: "ed25519" }));
assert.match(key.KeyMaterial, /PRIVATE KEY/);
const { GroupId } = await ec2.send(new CreateSecurityGroupCommand({ GroupName: name, Description: "Made by JavaScript" }));
await ec2.send(new AuthorizeSecurityGroupIngressCommand({
  GroupId, IpPermissions: [{ IpProtocol: "tcp", FromPort: 22, ToPort: 22, IpRanges: [{ CidrIp: "10.0.0.0/8" }] }],
}));
const walls = await ec2.send(new DescribeSecurityGroupsCommand({ GroupIds: [GroupId] }));
assert.equal(walls.SecurityGroups[0].IpPermissions[0].IpRanges[0].CidrIp, "10.0.0.0/8");

const made = await ec2.send(new RunInstancesCommand({
  ImageId: image, InstanceType: "t3.micro", MinCount: 1, MaxCount: 1, KeyName: name, SecurityGroupIds: [GroupId],
  TagSpecifications: [{ ResourceType: "instance", Tags: [{ Key: "Name", Value: name }] }],
}));
const id = made.Instances[0].InstanceId;
assert.match(id, /^i-[0-9a-f]{17}$/);
assert.ok(made.Instances[0].LaunchTime instanceof Date);
const InstanceIds = [id];
await waitUntilInstanceRunning(patience, { InstanceIds });
await waitUntilInstanceStatusOk(patience, { InstanceIds });

await ec2.send(new CreateTagsCommand({ Resources: [id], Tags: [{ Key: "stage", Value: "test é ✓" }] }));
const found = [];
const filters = { Filters: [{ Name: "tag:Name", Values: [name] }, { Name: "instance-state-name", Values: ["running"] }] };
for await (const page of paginateDescribeInstances({ client: ec2, pageSize: 5 }, filters)) {
  found.push(...page.Reservations.flatMap((one) => one.Instances));
}
assert.deepEqual(found.map((one) => one.InstanceId), InstanceIds);
assert.equal(found[0].Tags.find((one) => one.Key === "stage").Value, "test é ✓");

await ec2.send(new RebootInstancesCommand({ InstanceIds }));
await ec2.send(new StopInstancesCommand({ InstanceIds }));
await waitUntilInstanceStopped(patience, { InstanceIds });
await ec2.send(new StartInstancesCommand({ InstanceIds }));
await waitUntilInstanceRunning(patience, { InstanceIds });

await ec2.send(new TerminateInstancesCommand({ InstanceIds }));
await waitUntilInstanceTerminated(patience, { InstanceIds });
await ec2.send(new DeleteSecurityGroupCommand({ GroupId }));
await ec2.send(new DeleteKeyPairCommand({ KeyName: name }));
await assert.rejects(
  ec2.send(new DescribeInstancesCommand({ InstanceIds: ["i-00000000000000000"] })),
  (error) => error.name === "InvalidInstanceID.NotFound" && error.$metadata.httpStatusCode === 400 && !!error.$metadata.requestId,
);
console.log(`js: ok on node ${process.version}`);
