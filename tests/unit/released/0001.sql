BEGIN TRANSACTION;
CREATE TABLE access_keys (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	secret TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "access_keys" VALUES('AKIACYFQ65B24R7EES3T','000000000000','not-a-secret',1.79541012224576902386e+09);
CREATE TABLE accounts (
	id VARCHAR(12) NOT NULL, 
	name TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "accounts" VALUES('000000000000','default',1.79541012224321246148e+09);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE client_tokens (
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	operation VARCHAR(128) NOT NULL, 
	token VARCHAR(64) NOT NULL, 
	parameters TEXT NOT NULL, 
	result TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (account, region, operation, token)
);
INSERT INTO "client_tokens" VALUES('000000000000','us-east-1','RunInstances','tok','6337831277a1c5ffa5f3552edcfc086b79d9f0962af14ab4645186f22102142b','{"ReservationId": "r-01b03bdb57a652e93", "OwnerId": "000000000000", "Groups": [], "Instances": [{"InstanceId": "i-0d1d8b29f84bef776", "ReservationId": "r-01b03bdb57a652e93", "AmiLaunchIndex": 0, "ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.micro", "LaunchTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "Architecture": "x86_64", "VirtualizationType": "hvm", "Hypervisor": "xen", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeId": "vol-00cd29c099d3d286f", "Status": "attaching", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true}}], "NetworkInterfaces": [{"NetworkInterfaceId": "eni-01e2b8fb09ed028c8", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "OwnerId": "000000000000", "Description": "", "MacAddress": "06:cd:4b:d7:25:e1", "PrivateIpAddress": "172.31.2.238", "PrivateDnsName": "ip-172-31-2-238.ec2.internal", "PrivateIpAddresses": [{"Primary": true, "PrivateIpAddress": "172.31.2.238", "PrivateDnsName": "ip-172-31-2-238.ec2.internal", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.110.131", "PublicDnsName": "ec2-198-18-110-131.compute-1.amazonaws.com"}}], "Ipv6Addresses": [], "Groups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "SourceDestCheck": true, "Status": "in-use", "InterfaceType": "interface", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.110.131", "PublicDnsName": "ec2-198-18-110-131.compute-1.amazonaws.com"}, "Attachment": {"AttachmentId": "eni-attach-0be60d8b414f2bdbf", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}}], "SecurityGroups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "Monitoring": {"State": "disabled"}, "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "MetadataOptions": {"State": "applied", "HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}, "EbsOptimized": false, "EnaSupport": false, "ClientToken": "tok", "ProductCodes": [], "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "CurrentInstanceBootMode": "legacy-bios", "PrivateDnsNameOptions": {"HostnameType": "ip-name", "EnableResourceNameDnsARecord": false, "EnableResourceNameDnsAAAARecord": false}, "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "KeyName": "old", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "PrivateIpAddress": "172.31.2.238", "PrivateDnsName": "ip-172-31-2-238.ec2.internal", "SourceDestCheck": true, "PublicDnsName": "ec2-198-18-110-131.compute-1.amazonaws.com", "PublicIpAddress": "198.18.110.131"}, {"InstanceId": "i-0ca60abe894376d8c", "ReservationId": "r-01b03bdb57a652e93", "AmiLaunchIndex": 1, "ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.micro", "LaunchTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "Architecture": "x86_64", "VirtualizationType": "hvm", "Hypervisor": "xen", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeId": "vol-003b44b256ed06234", "Status": "attaching", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true}}], "NetworkInterfaces": [{"NetworkInterfaceId": "eni-05b875936d2bcac8b", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "OwnerId": "000000000000", "Description": "", "MacAddress": "06:ba:8a:1d:fd:bf", "PrivateIpAddress": "172.31.11.100", "PrivateDnsName": "ip-172-31-11-100.ec2.internal", "PrivateIpAddresses": [{"Primary": true, "PrivateIpAddress": "172.31.11.100", "PrivateDnsName": "ip-172-31-11-100.ec2.internal", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.110.169", "PublicDnsName": "ec2-198-18-110-169.compute-1.amazonaws.com"}}], "Ipv6Addresses": [], "Groups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "SourceDestCheck": true, "Status": "in-use", "InterfaceType": "interface", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.110.169", "PublicDnsName": "ec2-198-18-110-169.compute-1.amazonaws.com"}, "Attachment": {"AttachmentId": "eni-attach-033ed7bae3658a1aa", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}}], "SecurityGroups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "Monitoring": {"State": "disabled"}, "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "MetadataOptions": {"State": "applied", "HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}, "EbsOptimized": false, "EnaSupport": false, "ClientToken": "tok", "ProductCodes": [], "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "CurrentInstanceBootMode": "legacy-bios", "PrivateDnsNameOptions": {"HostnameType": "ip-name", "EnableResourceNameDnsARecord": false, "EnableResourceNameDnsAAAARecord": false}, "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "KeyName": "old", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "PrivateIpAddress": "172.31.11.100", "PrivateDnsName": "ip-172-31-11-100.ec2.internal", "SourceDestCheck": true, "PublicDnsName": "ec2-198-18-110-169.compute-1.amazonaws.com", "PublicIpAddress": "198.18.110.169"}, {"InstanceId": "i-000afb5903f9a35ee", "ReservationId": "r-01b03bdb57a652e93", "AmiLaunchIndex": 2, "ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.micro", "LaunchTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "Architecture": "x86_64", "VirtualizationType": "hvm", "Hypervisor": "xen", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeId": "vol-08f3cc31ee937e00e", "Status": "attaching", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true}}], "NetworkInterfaces": [{"NetworkInterfaceId": "eni-074aca3304633c48f", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "OwnerId": "000000000000", "Description": "", "MacAddress": "06:98:6a:d4:50:5d", "PrivateIpAddress": "172.31.4.156", "PrivateDnsName": "ip-172-31-4-156.ec2.internal", "PrivateIpAddresses": [{"Primary": true, "PrivateIpAddress": "172.31.4.156", "PrivateDnsName": "ip-172-31-4-156.ec2.internal", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.111.100", "PublicDnsName": "ec2-198-18-111-100.compute-1.amazonaws.com"}}], "Ipv6Addresses": [], "Groups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "SourceDestCheck": true, "Status": "in-use", "InterfaceType": "interface", "Association": {"IpOwnerId": "amazon", "PublicIp": "198.18.111.100", "PublicDnsName": "ec2-198-18-111-100.compute-1.amazonaws.com"}, "Attachment": {"AttachmentId": "eni-attach-02a5db9834ef034c7", "AttachTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}}], "SecurityGroups": [{"GroupId": "sg-0f5526753daabd031", "GroupName": "web"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "Monitoring": {"State": "disabled"}, "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "MetadataOptions": {"State": "applied", "HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}, "EbsOptimized": false, "EnaSupport": false, "ClientToken": "tok", "ProductCodes": [], "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:02:03.659326+00:00"}, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "CurrentInstanceBootMode": "legacy-bios", "PrivateDnsNameOptions": {"HostnameType": "ip-name", "EnableResourceNameDnsARecord": false, "EnableResourceNameDnsAAAARecord": false}, "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "KeyName": "old", "VpcId": "vpc-05a7cad375d656c82", "SubnetId": "subnet-05790d54a1fde26e2", "PrivateIpAddress": "172.31.4.156", "PrivateDnsName": "ip-172-31-4-156.ec2.internal", "SourceDestCheck": true, "PublicDnsName": "ec2-198-18-111-100.compute-1.amazonaws.com", "PublicIpAddress": "198.18.111.100"}]}',1.79541012365932631496e+09);
CREATE TABLE dhcp_options (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	options JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "dhcp_options" VALUES('dopt-0018665851f111ef5','000000000000','us-east-1',1,1.79541012324917054177e+09,'{"domain-name": ["ec2.internal"], "domain-name-servers": ["AmazonProvidedDNS"]}');
CREATE TABLE images (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	architecture TEXT NOT NULL, 
	disk TEXT NOT NULL, 
	snapshot_id TEXT NOT NULL, 
	root_device TEXT NOT NULL, 
	size_gib INTEGER NOT NULL, 
	public BOOLEAN NOT NULL, 
	available BOOLEAN NOT NULL, 
	block_devices JSON NOT NULL, 
	more JSON NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE instances (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	zone TEXT NOT NULL, 
	reservation_id TEXT NOT NULL, 
	launch_index INTEGER NOT NULL, 
	launched FLOAT NOT NULL, 
	image_id TEXT NOT NULL, 
	image_name TEXT NOT NULL, 
	instance_type TEXT NOT NULL, 
	key_name TEXT NOT NULL, 
	public_key TEXT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	subnet_id TEXT NOT NULL, 
	client_token TEXT NOT NULL, 
	user_data TEXT, 
	shutdown_behavior TEXT NOT NULL, 
	disable_api_termination BOOLEAN NOT NULL, 
	disable_api_stop BOOLEAN NOT NULL, 
	ebs_optimized BOOLEAN NOT NULL, 
	monitoring BOOLEAN NOT NULL, 
	stands_in BOOLEAN NOT NULL, 
	metadata_options JSON NOT NULL, 
	more JSON NOT NULL, 
	root_device TEXT NOT NULL, 
	power TEXT NOT NULL, 
	boot_count INTEGER NOT NULL, 
	started_at_boot INTEGER NOT NULL, 
	force BOOLEAN NOT NULL, 
	server_id TEXT NOT NULL, 
	reserved_vcpus INTEGER NOT NULL, 
	reserved_memory_mib INTEGER NOT NULL, 
	reason_code TEXT NOT NULL, 
	reason_message TEXT NOT NULL, 
	transition_reason TEXT NOT NULL, 
	ended FLOAT, 
	observed_power VARCHAR(16), 
	observed_boot_count INTEGER NOT NULL, 
	observed_cause TEXT NOT NULL, 
	observed_detail TEXT NOT NULL, 
	observed_phase TEXT NOT NULL, 
	observed_accelerator TEXT NOT NULL, 
	observed_reachable BOOLEAN, 
	observed_reachable_since FLOAT, 
	PRIMARY KEY (id)
);
INSERT INTO "instances" VALUES('i-0d1d8b29f84bef776','000000000000','us-east-1',5,1.79541012365932631496e+09,'us-east-1a','r-01b03bdb57a652e93',0,1.79541012365932631496e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDPYXP99RidKxpl5Ur721YmLCLqwWGym0NfH0ARw3rxY+dSsqijg7OYbKQCSgat/hV8rT2+4s1mQQvJbiCdu2osPXmNg8yKrjAR2xQ/YSIYnNj5IK4G4koGcMEIcNAvXW/8sgPUSeJz9j5eUnGkCtq6XVmSgajaWeqXBbHSAaop3dq6Mv3nVuKoRcOe3xxWrb5h7vB2o3TMAxKo3kOYlO80U128XBzhbUcQCrgrTBL+K88vznkd4VGSZyJvV+Lt/0OByP5P2zru9UQhSgYXwIAxkeBpfckUKmZeCiLjhj+GnMgcE+gIJl3jX/W30Z+hy0Uiwu93f+1I/3trViPdpR1l old','vpc-05a7cad375d656c82','subnet-05790d54a1fde26e2','tok','IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','stopped',1,1,0,'server-1',0,0,'Client.UserInitiatedShutdown','Client.UserInitiatedShutdown: User initiated shutdown','User initiated (2026-11-23 05:02:03 GMT)',NULL,'off',1,'ordered','','fake','fake',NULL,1.79541012390305948259e+09);
INSERT INTO "instances" VALUES('i-0ca60abe894376d8c','000000000000','us-east-1',6,1.79541012365932631496e+09,'us-east-1a','r-01b03bdb57a652e93',1,1.79541012365932631496e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDPYXP99RidKxpl5Ur721YmLCLqwWGym0NfH0ARw3rxY+dSsqijg7OYbKQCSgat/hV8rT2+4s1mQQvJbiCdu2osPXmNg8yKrjAR2xQ/YSIYnNj5IK4G4koGcMEIcNAvXW/8sgPUSeJz9j5eUnGkCtq6XVmSgajaWeqXBbHSAaop3dq6Mv3nVuKoRcOe3xxWrb5h7vB2o3TMAxKo3kOYlO80U128XBzhbUcQCrgrTBL+K88vznkd4VGSZyJvV+Lt/0OByP5P2zru9UQhSgYXwIAxkeBpfckUKmZeCiLjhj+GnMgcE+gIJl3jX/W30Z+hy0Uiwu93f+1I/3trViPdpR1l old','vpc-05a7cad375d656c82','subnet-05790d54a1fde26e2','tok','IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','terminated',1,1,0,'',0,0,'Client.UserInitiatedShutdown','Client.UserInitiatedShutdown: User initiated shutdown','User initiated (2026-11-23 05:02:03 GMT)',1.79541012398899531366e+09,'absent',0,'','','','fake',NULL,1.79541012400155448915e+09);
INSERT INTO "instances" VALUES('i-000afb5903f9a35ee','000000000000','us-east-1',2,1.79541012365932631496e+09,'us-east-1a','r-01b03bdb57a652e93',2,1.79541012365932631496e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDPYXP99RidKxpl5Ur721YmLCLqwWGym0NfH0ARw3rxY+dSsqijg7OYbKQCSgat/hV8rT2+4s1mQQvJbiCdu2osPXmNg8yKrjAR2xQ/YSIYnNj5IK4G4koGcMEIcNAvXW/8sgPUSeJz9j5eUnGkCtq6XVmSgajaWeqXBbHSAaop3dq6Mv3nVuKoRcOe3xxWrb5h7vB2o3TMAxKo3kOYlO80U128XBzhbUcQCrgrTBL+K88vznkd4VGSZyJvV+Lt/0OByP5P2zru9UQhSgYXwIAxkeBpfckUKmZeCiLjhj+GnMgcE+gIJl3jX/W30Z+hy0Uiwu93f+1I/3trViPdpR1l old','vpc-05a7cad375d656c82','subnet-05790d54a1fde26e2','tok','IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','running',1,1,0,'server-1',2,1184,'','','',NULL,'running',1,'','','fake','fake',1,1.79541012383938908573e+09);
CREATE TABLE interfaces (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	subnet_id TEXT NOT NULL, 
	zone TEXT NOT NULL, 
	description TEXT NOT NULL, 
	mac TEXT NOT NULL, 
	address TEXT NOT NULL, 
	public_address VARCHAR(15), 
	wants_public BOOLEAN NOT NULL, 
	groups JSON NOT NULL, 
	instance_id TEXT NOT NULL, 
	attachment_id TEXT NOT NULL, 
	device_index INTEGER NOT NULL, 
	delete_on_termination BOOLEAN NOT NULL, 
	source_dest_check BOOLEAN NOT NULL, 
	attached FLOAT, 
	PRIMARY KEY (id), 
	UNIQUE (public_address), 
	CONSTRAINT uq_interfaces_address UNIQUE (subnet_id, address)
);
INSERT INTO "interfaces" VALUES('eni-01e2b8fb09ed028c8','000000000000','us-east-1',2,1.79541012365932631496e+09,'vpc-05a7cad375d656c82','subnet-05790d54a1fde26e2','us-east-1a','','06:cd:4b:d7:25:e1','172.31.2.238',NULL,1,'["sg-0f5526753daabd031"]','i-0d1d8b29f84bef776','eni-attach-0be60d8b414f2bdbf',0,1,1,1.79541012365932631496e+09);
INSERT INTO "interfaces" VALUES('eni-074aca3304633c48f','000000000000','us-east-1',1,1.79541012365932631496e+09,'vpc-05a7cad375d656c82','subnet-05790d54a1fde26e2','us-east-1a','','06:98:6a:d4:50:5d','172.31.4.156','198.18.111.100',1,'["sg-0f5526753daabd031"]','i-000afb5903f9a35ee','eni-attach-02a5db9834ef034c7',0,1,1,1.79541012365932631496e+09);
CREATE TABLE internet_gateways (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "internet_gateways" VALUES('igw-070682ab61d333dd2','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82');
CREATE TABLE key_pairs (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	public_key TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_key_pairs_name UNIQUE (account, region, name)
);
INSERT INTO "key_pairs" VALUES('key-0f4832ff869ed509e','000000000000','us-east-1',1,1.79541012327920722962e+09,'old','rsa','84:0a:b6:b1:36:a8:2d:cb:1a:90:7b:f3:22:61:cd:96:52:25:62:c1','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDPYXP99RidKxpl5Ur721YmLCLqwWGym0NfH0ARw3rxY+dSsqijg7OYbKQCSgat/hV8rT2+4s1mQQvJbiCdu2osPXmNg8yKrjAR2xQ/YSIYnNj5IK4G4koGcMEIcNAvXW/8sgPUSeJz9j5eUnGkCtq6XVmSgajaWeqXBbHSAaop3dq6Mv3nVuKoRcOe3xxWrb5h7vB2o3TMAxKo3kOYlO80U128XBzhbUcQCrgrTBL+K88vznkd4VGSZyJvV+Lt/0OByP5P2zru9UQhSgYXwIAxkeBpfckUKmZeCiLjhj+GnMgcE+gIJl3jX/W30Z+hy0Uiwu93f+1I/3trViPdpR1l old');
CREATE TABLE network_acls (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	is_default BOOLEAN NOT NULL, 
	entries JSON NOT NULL, 
	associations JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "network_acls" VALUES('acl-06c3dc001fab4438b','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82',1,'[{"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": true, "RuleAction": "allow", "RuleNumber": 100}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": true, "RuleAction": "deny", "RuleNumber": 32767}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": false, "RuleAction": "allow", "RuleNumber": 100}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": false, "RuleAction": "deny", "RuleNumber": 32767}]','[{"NetworkAclAssociationId": "aclassoc-0ad8415368f1007dc", "SubnetId": "subnet-05790d54a1fde26e2"}, {"NetworkAclAssociationId": "aclassoc-0a046eee3db10be0b", "SubnetId": "subnet-0b39a4957f1c4b652"}, {"NetworkAclAssociationId": "aclassoc-017ec58341043e5ec", "SubnetId": "subnet-0b839a3c26bf3fd92"}]');
CREATE TABLE revision (
	id INTEGER NOT NULL, 
	value BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "revision" VALUES(1,10);
CREATE TABLE route_tables (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	main BOOLEAN NOT NULL, 
	routes JSON NOT NULL, 
	associations JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "route_tables" VALUES('rtb-0e23c7b949a2aca67','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82',1,'[{"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local", "Origin": "CreateRouteTable", "State": "active"}, {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-070682ab61d333dd2", "Origin": "CreateRoute", "State": "active"}]','[{"Main": true, "RouteTableAssociationId": "rtbassoc-01db0b98e1e692b46"}]');
CREATE TABLE security_group_rules (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	group_id TEXT NOT NULL, 
	direction TEXT NOT NULL, 
	protocol TEXT NOT NULL, 
	from_port INTEGER NOT NULL, 
	to_port INTEGER NOT NULL, 
	cidr TEXT NOT NULL, 
	cidr6 TEXT NOT NULL, 
	peer_group TEXT NOT NULL, 
	description TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "security_group_rules" VALUES('sgr-00461948c1601f47a','000000000000','us-east-1',1,1.79541012324917054177e+09,'sg-074a3a80b1feaa75f','ingress','-1',-1,-1,'','','sg-074a3a80b1feaa75f','');
INSERT INTO "security_group_rules" VALUES('sgr-05611a32a0b3492e4','000000000000','us-east-1',1,1.79541012324917054177e+09,'sg-074a3a80b1feaa75f','egress','-1',-1,-1,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-0dc16a321d4a67c2a','000000000000','us-east-1',1,1.79541012334867525106e+09,'sg-0f5526753daabd031','egress','-1',-1,-1,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-0672b45b35f038bab','000000000000','us-east-1',1,1.7954101234148528576e+09,'sg-0f5526753daabd031','ingress','tcp',22,22,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-0f4dddb35fa912960','000000000000','us-east-1',1,1.79541012341485381126e+09,'sg-0f5526753daabd031','ingress','-1',-1,-1,'','','sg-0f5526753daabd031','');
CREATE TABLE security_groups (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_security_groups_name UNIQUE (vpc_id, name)
);
INSERT INTO "security_groups" VALUES('sg-074a3a80b1feaa75f','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82','default','default VPC security group');
INSERT INTO "security_groups" VALUES('sg-0f5526753daabd031','000000000000','us-east-1',2,1.79541012334867525106e+09,'vpc-05a7cad375d656c82','web','d');
CREATE TABLE servers (
	id VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	zones JSON NOT NULL, 
	vcpus INTEGER NOT NULL, 
	memory_mib INTEGER NOT NULL, 
	reserved_vcpus INTEGER NOT NULL, 
	reserved_memory_mib INTEGER NOT NULL, 
	observed_facts JSON NOT NULL, 
	observed_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "servers" VALUES('server-1',5,'[]',16777216,1073740800,2,1184,'{"hostname": "server", "drivers": "fake", "accelerators": {"tcg": "fake", "kvm": "fake"}}',1.79541012401910138134e+09);
CREATE TABLE subnets (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	zone TEXT NOT NULL, 
	cidr TEXT NOT NULL, 
	is_default BOOLEAN NOT NULL, 
	map_public BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "subnets" VALUES('subnet-05790d54a1fde26e2','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82','us-east-1a','172.31.0.0/20',1,1);
INSERT INTO "subnets" VALUES('subnet-0b39a4957f1c4b652','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82','us-east-1b','172.31.16.0/20',1,1);
INSERT INTO "subnets" VALUES('subnet-0b839a3c26bf3fd92','000000000000','us-east-1',1,1.79541012324917054177e+09,'vpc-05a7cad375d656c82','us-east-1c','172.31.32.0/20',1,1);
CREATE TABLE tags (
	resource_id VARCHAR(32) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	value VARCHAR(256) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	resource_type VARCHAR(64) NOT NULL, 
	PRIMARY KEY (resource_id, "key")
);
INSERT INTO "tags" VALUES('vol-00cd29c099d3d286f','v','1','000000000000','us-east-1','volume');
INSERT INTO "tags" VALUES('i-0d1d8b29f84bef776','Name','web 한','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('i-0ca60abe894376d8c','Name','web 한','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('vol-08f3cc31ee937e00e','v','1','000000000000','us-east-1','volume');
INSERT INTO "tags" VALUES('i-000afb5903f9a35ee','Name','web 한','000000000000','us-east-1','instance');
CREATE TABLE volumes (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	zone TEXT NOT NULL, 
	snapshot_id TEXT NOT NULL, 
	image_name TEXT NOT NULL, 
	size_gib INTEGER NOT NULL, 
	server_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	iops INTEGER NOT NULL, 
	throughput INTEGER NOT NULL, 
	encrypted BOOLEAN NOT NULL, 
	instance_id TEXT NOT NULL, 
	device TEXT NOT NULL, 
	delete_on_termination BOOLEAN NOT NULL, 
	attached FLOAT, 
	PRIMARY KEY (id)
);
INSERT INTO "volumes" VALUES('vol-00cd29c099d3d286f','000000000000','us-east-1',1,1.79541012365932631496e+09,'us-east-1a','','',8,'server-1','gp3',3000,125,0,'i-0d1d8b29f84bef776','/dev/xvda',1,1.79541012365932631496e+09);
INSERT INTO "volumes" VALUES('vol-08f3cc31ee937e00e','000000000000','us-east-1',1,1.79541012365932631496e+09,'us-east-1a','','',8,'server-1','gp3',3000,125,0,'i-000afb5903f9a35ee','/dev/xvda',1,1.79541012365932631496e+09);
CREATE TABLE vpcs (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	cidr TEXT NOT NULL, 
	dhcp_options_id TEXT NOT NULL, 
	is_default BOOLEAN NOT NULL, 
	dns_support BOOLEAN NOT NULL, 
	dns_hostnames BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "vpcs" VALUES('vpc-05a7cad375d656c82','000000000000','us-east-1',1,1.79541012324917054177e+09,'172.31.0.0/16','dopt-0018665851f111ef5',1,1,1);
CREATE INDEX ix_dhcp_options_scope ON dhcp_options (account, region);
CREATE INDEX ix_images_scope ON images (account, region);
CREATE INDEX ix_instances_scope ON instances (account, region);
CREATE INDEX ix_instances_server ON instances (server_id);
CREATE INDEX ix_interfaces_instance ON interfaces (instance_id);
CREATE INDEX ix_interfaces_scope ON interfaces (account, region);
CREATE INDEX ix_internet_gateways_scope ON internet_gateways (account, region);
CREATE INDEX ix_key_pairs_scope ON key_pairs (account, region);
CREATE INDEX ix_network_acls_scope ON network_acls (account, region);
CREATE INDEX ix_route_tables_scope ON route_tables (account, region);
CREATE INDEX ix_rules_group ON security_group_rules (group_id);
CREATE INDEX ix_security_group_rules_scope ON security_group_rules (account, region);
CREATE INDEX ix_security_groups_scope ON security_groups (account, region);
CREATE INDEX ix_subnets_scope ON subnets (account, region);
CREATE INDEX ix_tags_scope ON tags (account, region);
CREATE INDEX ix_volumes_instance ON volumes (instance_id);
CREATE INDEX ix_volumes_scope ON volumes (account, region);
CREATE INDEX ix_vpcs_scope ON vpcs (account, region);
COMMIT;
