BEGIN TRANSACTION;
CREATE TABLE access_keys (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	secret TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "access_keys" VALUES('AKIAWJESOTUT7FSANSGX','000000000000','not-a-secret',1.79541075232371497155e+09);
CREATE TABLE accounts (
	id VARCHAR(12) NOT NULL, 
	name TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "accounts" VALUES('000000000000','default',1.79541075232264208793e+09);
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "alembic_version" VALUES('0003');
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
INSERT INTO "client_tokens" VALUES('000000000000','us-east-1','RunInstances','tok','a08767c7e60870d3fbaa86946459c6a60ec4120436d8f97cddca8fac5fd837d6','{"Groups": [], "Instances": [{"AmiLaunchIndex": 0, "Architecture": "x86_64", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "DeleteOnTermination": true, "Status": "attaching", "VolumeId": "vol-074b0a15b7f30485a"}}], "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "ClientToken": "tok", "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "CurrentInstanceBootMode": "legacy-bios", "EbsOptimized": false, "EnaSupport": false, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "Hypervisor": "xen", "ImageId": "ami-0123456789abcdef0", "InstanceId": "i-0754d61a6982737f1", "InstanceType": "t3.micro", "KeyName": "old", "LaunchTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "MetadataOptions": {"HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "HttpPutResponseHopLimit": 1, "HttpTokens": "optional", "InstanceMetadataTags": "disabled", "State": "applied"}, "Monitoring": {"State": "disabled"}, "NetworkInterfaces": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-89-143.compute-1.amazonaws.com", "PublicIp": "198.18.89.143"}, "Attachment": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "AttachmentId": "eni-attach-0d900b4336c1429a6", "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}, "Description": "", "Groups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "InterfaceType": "interface", "Ipv6Addresses": [], "MacAddress": "06:20:62:cc:28:75", "NetworkInterfaceId": "eni-0a3584730a7485954", "OwnerId": "000000000000", "PrivateDnsName": "ip-172-31-14-50.ec2.internal", "PrivateIpAddress": "172.31.14.50", "PrivateIpAddresses": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-89-143.compute-1.amazonaws.com", "PublicIp": "198.18.89.143"}, "Primary": true, "PrivateDnsName": "ip-172-31-14-50.ec2.internal", "PrivateIpAddress": "172.31.14.50"}], "SourceDestCheck": true, "Status": "in-use", "SubnetId": "subnet-0bde66ec441cde03f", "VpcId": "vpc-0e3112ea826967012"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "PlatformDetails": "Linux/UNIX", "PrivateDnsName": "ip-172-31-14-50.ec2.internal", "PrivateDnsNameOptions": {"EnableResourceNameDnsAAAARecord": false, "EnableResourceNameDnsARecord": false, "HostnameType": "ip-name"}, "PrivateIpAddress": "172.31.14.50", "ProductCodes": [], "PublicDnsName": "ec2-198-18-89-143.compute-1.amazonaws.com", "PublicIpAddress": "198.18.89.143", "ReservationId": "r-04c9b81ff67144a90", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "SecurityGroups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "SourceDestCheck": true, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "SubnetId": "subnet-0bde66ec441cde03f", "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "VirtualizationType": "hvm", "VpcId": "vpc-0e3112ea826967012"}, {"AmiLaunchIndex": 1, "Architecture": "x86_64", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "DeleteOnTermination": true, "Status": "attaching", "VolumeId": "vol-02ff86b269888a75e"}}], "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "ClientToken": "tok", "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "CurrentInstanceBootMode": "legacy-bios", "EbsOptimized": false, "EnaSupport": false, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "Hypervisor": "xen", "ImageId": "ami-0123456789abcdef0", "InstanceId": "i-0dac9e4420ac114e8", "InstanceType": "t3.micro", "KeyName": "old", "LaunchTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "MetadataOptions": {"HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "HttpPutResponseHopLimit": 1, "HttpTokens": "optional", "InstanceMetadataTags": "disabled", "State": "applied"}, "Monitoring": {"State": "disabled"}, "NetworkInterfaces": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-89-134.compute-1.amazonaws.com", "PublicIp": "198.18.89.134"}, "Attachment": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "AttachmentId": "eni-attach-098e9fd050e786a42", "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}, "Description": "", "Groups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "InterfaceType": "interface", "Ipv6Addresses": [], "MacAddress": "06:0c:f0:ef:81:27", "NetworkInterfaceId": "eni-076b9dc7c0a434bfa", "OwnerId": "000000000000", "PrivateDnsName": "ip-172-31-12-16.ec2.internal", "PrivateIpAddress": "172.31.12.16", "PrivateIpAddresses": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-89-134.compute-1.amazonaws.com", "PublicIp": "198.18.89.134"}, "Primary": true, "PrivateDnsName": "ip-172-31-12-16.ec2.internal", "PrivateIpAddress": "172.31.12.16"}], "SourceDestCheck": true, "Status": "in-use", "SubnetId": "subnet-0bde66ec441cde03f", "VpcId": "vpc-0e3112ea826967012"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "PlatformDetails": "Linux/UNIX", "PrivateDnsName": "ip-172-31-12-16.ec2.internal", "PrivateDnsNameOptions": {"EnableResourceNameDnsAAAARecord": false, "EnableResourceNameDnsARecord": false, "HostnameType": "ip-name"}, "PrivateIpAddress": "172.31.12.16", "ProductCodes": [], "PublicDnsName": "ec2-198-18-89-134.compute-1.amazonaws.com", "PublicIpAddress": "198.18.89.134", "ReservationId": "r-04c9b81ff67144a90", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "SecurityGroups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "SourceDestCheck": true, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "SubnetId": "subnet-0bde66ec441cde03f", "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:12:33.169125+00:00"}, "VirtualizationType": "hvm", "VpcId": "vpc-0e3112ea826967012"}, {"AmiLaunchIndex": 2, "Architecture": "x86_64", "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "DeleteOnTermination": true, "Status": "attaching", "VolumeId": "vol-07e403fce374b4a11"}}], "CapacityReservationSpecification": {"CapacityReservationPreference": "open"}, "ClientToken": "tok", "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}, "CurrentInstanceBootMode": "legacy-bios", "EbsOptimized": false, "EnaSupport": false, "EnclaveOptions": {"Enabled": false}, "HibernationOptions": {"Configured": false}, "Hypervisor": "xen", "ImageId": "ami-0123456789abcdef0", "InstanceId": "i-04da46f8b2b494e75", "InstanceType": "t3.micro", "KeyName": "old", "LaunchTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "MaintenanceOptions": {"AutoRecovery": "default"}, "MetadataOptions": {"HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "HttpPutResponseHopLimit": 1, "HttpTokens": "optional", "InstanceMetadataTags": "disabled", "State": "applied"}, "Monitoring": {"State": "disabled"}, "NetworkInterfaces": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-88-50.compute-1.amazonaws.com", "PublicIp": "198.18.88.50"}, "Attachment": {"AttachTime": {"$time": "2026-11-23T05:12:33.169124+00:00"}, "AttachmentId": "eni-attach-052d27dcd7e2d4e29", "DeleteOnTermination": true, "DeviceIndex": 0, "NetworkCardIndex": 0, "Status": "attached"}, "Description": "", "Groups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "InterfaceType": "interface", "Ipv6Addresses": [], "MacAddress": "06:c9:eb:b6:73:7e", "NetworkInterfaceId": "eni-0ac8988cc1a5d9e83", "OwnerId": "000000000000", "PrivateDnsName": "ip-172-31-3-221.ec2.internal", "PrivateIpAddress": "172.31.3.221", "PrivateIpAddresses": [{"Association": {"IpOwnerId": "amazon", "PublicDnsName": "ec2-198-18-88-50.compute-1.amazonaws.com", "PublicIp": "198.18.88.50"}, "Primary": true, "PrivateDnsName": "ip-172-31-3-221.ec2.internal", "PrivateIpAddress": "172.31.3.221"}], "SourceDestCheck": true, "Status": "in-use", "SubnetId": "subnet-0bde66ec441cde03f", "VpcId": "vpc-0e3112ea826967012"}], "Placement": {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az1", "GroupName": "", "Tenancy": "default"}, "PlatformDetails": "Linux/UNIX", "PrivateDnsName": "ip-172-31-3-221.ec2.internal", "PrivateDnsNameOptions": {"EnableResourceNameDnsAAAARecord": false, "EnableResourceNameDnsARecord": false, "HostnameType": "ip-name"}, "PrivateIpAddress": "172.31.3.221", "ProductCodes": [], "PublicDnsName": "ec2-198-18-88-50.compute-1.amazonaws.com", "PublicIpAddress": "198.18.88.50", "ReservationId": "r-04c9b81ff67144a90", "RootDeviceName": "/dev/xvda", "RootDeviceType": "ebs", "SecurityGroups": [{"GroupId": "sg-0bf80fe06045eebf6", "GroupName": "web"}], "SourceDestCheck": true, "State": {"Code": 0, "Name": "pending"}, "StateTransitionReason": "", "SubnetId": "subnet-0bde66ec441cde03f", "Tags": [{"Key": "Name", "Value": "web \ud55c"}], "UsageOperation": "RunInstances", "UsageOperationUpdateTime": {"$time": "2026-11-23T05:12:33.169126+00:00"}, "VirtualizationType": "hvm", "VpcId": "vpc-0e3112ea826967012"}], "OwnerId": "000000000000", "ReservationId": "r-04c9b81ff67144a90"}',1.79541075316912388804e+09);
INSERT INTO "client_tokens" VALUES('000000000000','us-east-1','CreateLaunchTemplate','d1ed51e1-dde2-4d86-806d-cf04119aa60b','0aafa70b977f8069c597bd3b33729204d2eae2bc02d8183a5a249d2b58be44fb','{"LaunchTemplate": {"CreateTime": {"$time": "2026-11-23T05:12:35.499403+00:00"}, "CreatedBy": "arn:aws:iam::000000000000:root", "DefaultVersionNumber": 1, "LatestVersionNumber": 1, "LaunchTemplateId": "lt-02ed39b96e3c8a62d", "LaunchTemplateName": "ltold", "Tags": []}}',1.7954107554994029999e+09);
INSERT INTO "client_tokens" VALUES('000000000000','us-east-1','CreateFleet','8e78ac02-ed96-4af2-a10a-33acfdd3387b','de324595c269906304c303eb7581641c28c942ebd52e83565a615d6cb8beaf51','{"Errors": [], "FleetId": "fleet-0dc67695f100a9baa", "Instances": [{"InstanceIds": ["i-0bb68300b500d0f4b"], "InstanceType": "t3.nano", "LaunchTemplateAndOverrides": {"LaunchTemplateSpecification": {"LaunchTemplateName": "ltold", "Version": "$Latest"}, "Overrides": {}}, "Lifecycle": "on-demand"}]}',1.7954107556002392769e+09);
CREATE TABLE dhcp_options (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	options JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "dhcp_options" VALUES('dopt-0acbf5423823a6e19','000000000000','us-east-1',1,1.79541075291933012003e+09,'{"domain-name": ["ec2.internal"], "domain-name-servers": ["AmazonProvidedDNS"]}');
CREATE TABLE fleets (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	kind TEXT NOT NULL, 
	request TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "fleets" VALUES('fleet-0dc67695f100a9baa','000000000000','us-east-1',1,1.7954107556002392769e+09,'instant','{"ClientToken": "8e78ac02-ed96-4af2-a10a-33acfdd3387b", "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": {"LaunchTemplateName": "ltold", "Version": "$Latest"}}], "TargetCapacitySpecification": {"DefaultTargetCapacityType": "on-demand", "TotalTargetCapacity": 1}, "Type": "instant"}','{"Errors": [], "Instances": [{"InstanceIds": ["i-0bb68300b500d0f4b"], "InstanceType": "t3.nano", "LaunchTemplateAndOverrides": {"LaunchTemplateSpecification": {"LaunchTemplateName": "ltold", "Version": "$Latest"}, "Overrides": {}}, "Lifecycle": "on-demand"}]}');
CREATE TABLE image_permissions (
	image_id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	PRIMARY KEY (image_id, account)
);
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
	placement_group TEXT NOT NULL, 
	partition_number INTEGER NOT NULL, 
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
INSERT INTO "instances" VALUES('i-0754d61a6982737f1','000000000000','us-east-1',6,1.79541075316912388804e+09,'us-east-1a','r-04c9b81ff67144a90',0,1.79541075316912388804e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCXvOFoDWXMhJTlNMl0FdoAGof4wE0tpwA/zhk2JZYtZOU7hkwQ+GaYYtbA7Pe4C0yoZU2fh2/HK2XVzSssMsXrvEw22P0Bux7t568Rn055dCMLcldPktYORXMtRWYbEBnJyD2yxbSNlmQMh6LKFM+lkehR6804j4QBRpnQGpYBo+I/uDJHFoJ59z6JA263kAO1KPzJduG3MtnFG9K+6UIiNShUM44unSyxtblJrRJGHNdypbZs99K2Lw05IY4mHl0al4sr9Yygi0c5NnDO7E17U7ZC/ZdimDlQWbvWbYaJk4dOM2gZwK6kNVzrLHVaEThgEkIs9GA0AL9Np08jxmHb old','vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','tok','',0,'IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','stopped',1,1,0,'server-1',0,0,'Client.UserInitiatedShutdown','Client.UserInitiatedShutdown: User initiated shutdown','User initiated (2026-11-23 05:12:33 GMT)',NULL,'off',1,'ordered','','fake','fake',NULL,1.79541075370302844046e+09);
INSERT INTO "instances" VALUES('i-0dac9e4420ac114e8','000000000000','us-east-1',8,1.7954107531691248417e+09,'us-east-1a','r-04c9b81ff67144a90',1,1.79541075316912388804e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCXvOFoDWXMhJTlNMl0FdoAGof4wE0tpwA/zhk2JZYtZOU7hkwQ+GaYYtbA7Pe4C0yoZU2fh2/HK2XVzSssMsXrvEw22P0Bux7t568Rn055dCMLcldPktYORXMtRWYbEBnJyD2yxbSNlmQMh6LKFM+lkehR6804j4QBRpnQGpYBo+I/uDJHFoJ59z6JA263kAO1KPzJduG3MtnFG9K+6UIiNShUM44unSyxtblJrRJGHNdypbZs99K2Lw05IY4mHl0al4sr9Yygi0c5NnDO7E17U7ZC/ZdimDlQWbvWbYaJk4dOM2gZwK6kNVzrLHVaEThgEkIs9GA0AL9Np08jxmHb old','vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','tok','',0,'IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','terminated',1,1,0,'',0,0,'Client.UserInitiatedShutdown','Client.UserInitiatedShutdown: User initiated shutdown','User initiated (2026-11-23 05:12:34 GMT)',1.79541075444314241404e+09,'absent',0,'','','','fake',NULL,1.79541075447219514843e+09);
INSERT INTO "instances" VALUES('i-04da46f8b2b494e75','000000000000','us-east-1',2,1.79541075316912579536e+09,'us-east-1a','r-04c9b81ff67144a90',2,1.79541075316912388804e+09,'ami-0123456789abcdef0','','t3.micro','old','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCXvOFoDWXMhJTlNMl0FdoAGof4wE0tpwA/zhk2JZYtZOU7hkwQ+GaYYtbA7Pe4C0yoZU2fh2/HK2XVzSssMsXrvEw22P0Bux7t568Rn055dCMLcldPktYORXMtRWYbEBnJyD2yxbSNlmQMh6LKFM+lkehR6804j4QBRpnQGpYBo+I/uDJHFoJ59z6JA263kAO1KPzJduG3MtnFG9K+6UIiNShUM44unSyxtblJrRJGHNdypbZs99K2Lw05IY4mHl0al4sr9Yygi0c5NnDO7E17U7ZC/ZdimDlQWbvWbYaJk4dOM2gZwK6kNVzrLHVaEThgEkIs9GA0AL9Np08jxmHb old','vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','tok','',0,'IyEvYmluL3NoCg==','stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','running',1,1,0,'server-1',2,1184,'','','',NULL,'running',1,'','','fake','fake',1,1.79541075330763864512e+09);
INSERT INTO "instances" VALUES('i-0bb68300b500d0f4b','000000000000','us-east-1',2,1.7954107556002392769e+09,'us-east-1a','r-00f8a24ef2d8e89a4',0,1.7954107556002392769e+09,'ami-0123456789abcdef0','','t3.nano','','','vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','','',0,NULL,'stop',0,0,0,0,1,'{"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "disabled"}','{}','/dev/xvda','running',1,1,0,'server-1',2,672,'','','',NULL,'running',1,'','','fake','fake',1,1.7954107556645584106e+09);
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
	CONSTRAINT uq_interfaces_address UNIQUE (subnet_id, address), 
	UNIQUE (public_address)
);
INSERT INTO "interfaces" VALUES('eni-0a3584730a7485954','000000000000','us-east-1',2,1.79541075316912388804e+09,'vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','us-east-1a','','06:20:62:cc:28:75','172.31.14.50',NULL,1,'["sg-0bf80fe06045eebf6"]','i-0754d61a6982737f1','eni-attach-0d900b4336c1429a6',0,1,1,1.79541075316912388804e+09);
INSERT INTO "interfaces" VALUES('eni-0ac8988cc1a5d9e83','000000000000','us-east-1',1,1.79541075316912579536e+09,'vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','us-east-1a','','06:c9:eb:b6:73:7e','172.31.3.221','198.18.88.50',1,'["sg-0bf80fe06045eebf6"]','i-04da46f8b2b494e75','eni-attach-052d27dcd7e2d4e29',0,1,1,1.79541075316912388804e+09);
INSERT INTO "interfaces" VALUES('eni-03e94a99f6051d78f','000000000000','us-east-1',1,1.7954107556002392769e+09,'vpc-0e3112ea826967012','subnet-0bde66ec441cde03f','us-east-1a','','06:7d:53:af:2a:1f','172.31.5.148','198.18.89.101',1,'["sg-09a9a2c39192a50a4"]','i-0bb68300b500d0f4b','eni-attach-08a24f3297408688a',0,1,1,1.7954107556002392769e+09);
CREATE TABLE internet_gateways (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	vpc_id TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "internet_gateways" VALUES('igw-057449fc4ceac9148','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012');
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
INSERT INTO "key_pairs" VALUES('key-0cf01f1f142567ff9','000000000000','us-east-1',1,1.7954107529324316978e+09,'old','rsa','04:71:fb:e9:cb:1b:0c:dd:cb:a1:e0:77:ae:dd:39:7d:2d:41:8b:80','ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCXvOFoDWXMhJTlNMl0FdoAGof4wE0tpwA/zhk2JZYtZOU7hkwQ+GaYYtbA7Pe4C0yoZU2fh2/HK2XVzSssMsXrvEw22P0Bux7t568Rn055dCMLcldPktYORXMtRWYbEBnJyD2yxbSNlmQMh6LKFM+lkehR6804j4QBRpnQGpYBo+I/uDJHFoJ59z6JA263kAO1KPzJduG3MtnFG9K+6UIiNShUM44unSyxtblJrRJGHNdypbZs99K2Lw05IY4mHl0al4sr9Yygi0c5NnDO7E17U7ZC/ZdimDlQWbvWbYaJk4dOM2gZwK6kNVzrLHVaEThgEkIs9GA0AL9Np08jxmHb old');
CREATE TABLE launch_template_versions (
	template_id VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	created_by TEXT NOT NULL, 
	description TEXT NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (template_id, number)
);
INSERT INTO "launch_template_versions" VALUES('lt-02ed39b96e3c8a62d',1,1.7954107554994029999e+09,'arn:aws:iam::000000000000:root','','{"ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.nano"}');
CREATE TABLE launch_templates (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	name TEXT NOT NULL, 
	created_by TEXT NOT NULL, 
	default_version INTEGER NOT NULL, 
	latest_version INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_launch_templates_name UNIQUE (account, region, name)
);
INSERT INTO "launch_templates" VALUES('lt-02ed39b96e3c8a62d','000000000000','us-east-1',1,1.7954107554994029999e+09,'ltold','arn:aws:iam::000000000000:root',1,1);
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
INSERT INTO "network_acls" VALUES('acl-026b00709cbedc6e6','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012',1,'[{"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": true, "RuleAction": "allow", "RuleNumber": 100}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": true, "RuleAction": "deny", "RuleNumber": 32767}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": false, "RuleAction": "allow", "RuleNumber": 100}, {"CidrBlock": "0.0.0.0/0", "Protocol": "-1", "Egress": false, "RuleAction": "deny", "RuleNumber": 32767}]','[{"NetworkAclAssociationId": "aclassoc-03c34f7b9948e7a50", "SubnetId": "subnet-0bde66ec441cde03f"}, {"NetworkAclAssociationId": "aclassoc-01e5c9f7af97290bc", "SubnetId": "subnet-0597dd9430f99ccb1"}, {"NetworkAclAssociationId": "aclassoc-03f87710a03ca9479", "SubnetId": "subnet-0d1c2158bd5ee01eb"}]');
CREATE TABLE placement_groups (
	id VARCHAR(32) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	name TEXT NOT NULL, 
	strategy TEXT NOT NULL, 
	spread_level TEXT NOT NULL, 
	partitions INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_placement_groups_name UNIQUE (account, region, name)
);
INSERT INTO "placement_groups" VALUES('pg-019bc18543618042b','000000000000','us-east-1',1,1.795410755573810339e+09,'pgold','cluster','',0);
CREATE TABLE revision (
	id INTEGER NOT NULL, 
	value BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "revision" VALUES(1,13);
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
INSERT INTO "route_tables" VALUES('rtb-04174a67bf396943b','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012',1,'[{"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local", "Origin": "CreateRouteTable", "State": "active"}, {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-057449fc4ceac9148", "Origin": "CreateRoute", "State": "active"}]','[{"Main": true, "RouteTableAssociationId": "rtbassoc-02cf22d263efdf0d8"}]');
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
INSERT INTO "security_group_rules" VALUES('sgr-06625e3b2a4437bdd','000000000000','us-east-1',1,1.79541075291933012003e+09,'sg-09a9a2c39192a50a4','ingress','-1',-1,-1,'','','sg-09a9a2c39192a50a4','');
INSERT INTO "security_group_rules" VALUES('sgr-054b8b694f9f148cd','000000000000','us-east-1',1,1.79541075291933012003e+09,'sg-09a9a2c39192a50a4','egress','-1',-1,-1,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-0000395e8e89d1e18','000000000000','us-east-1',1,1.79541075298496842385e+09,'sg-0bf80fe06045eebf6','egress','-1',-1,-1,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-0bbaaeccca89c671f','000000000000','us-east-1',1,1.79541075313271069526e+09,'sg-0bf80fe06045eebf6','ingress','tcp',22,22,'0.0.0.0/0','','','');
INSERT INTO "security_group_rules" VALUES('sgr-055d025065a4ed234','000000000000','us-east-1',1,1.79541075313271164893e+09,'sg-0bf80fe06045eebf6','ingress','-1',-1,-1,'','','sg-0bf80fe06045eebf6','');
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
INSERT INTO "security_groups" VALUES('sg-09a9a2c39192a50a4','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012','default','default VPC security group');
INSERT INTO "security_groups" VALUES('sg-0bf80fe06045eebf6','000000000000','us-east-1',3,1.79541075298496842385e+09,'vpc-0e3112ea826967012','web','d');
CREATE TABLE servers (
	id VARCHAR(32) NOT NULL, 
	version INTEGER NOT NULL, 
	zones JSON NOT NULL, 
	vcpus INTEGER NOT NULL, 
	memory_mib INTEGER NOT NULL, 
	reserved_vcpus INTEGER NOT NULL, 
	reserved_memory_mib INTEGER NOT NULL, 
	observed_facts JSON NOT NULL, 
	observed_at FLOAT NOT NULL, token VARCHAR(64) DEFAULT '' NOT NULL, holder TEXT DEFAULT '' NOT NULL, epoch INTEGER DEFAULT '0' NOT NULL, beat BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "servers" VALUES('server-1',1,'[]',16777216,1073740800,4,1856,'{"hostname": "server", "drivers": "fake", "accelerators": {"tcg": "fake", "kvm": "fake"}}',1.79541075235773706433e+09,'fedcba9876543210fedcba9876543210','{"host": "old", "boot": "b", "data": "/var/lib/haneul", "place": "1:2"}',3,42);
CREATE TABLE store_identity (
	id INTEGER NOT NULL, 
	token VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "store_identity" VALUES(1,'0123456789abcdef0123456789abcdef');
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
INSERT INTO "subnets" VALUES('subnet-0bde66ec441cde03f','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012','us-east-1a','172.31.0.0/20',1,1);
INSERT INTO "subnets" VALUES('subnet-0597dd9430f99ccb1','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012','us-east-1b','172.31.16.0/20',1,1);
INSERT INTO "subnets" VALUES('subnet-0d1c2158bd5ee01eb','000000000000','us-east-1',1,1.79541075291933012003e+09,'vpc-0e3112ea826967012','us-east-1c','172.31.32.0/20',1,1);
CREATE TABLE tags (
	resource_id VARCHAR(32) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	value VARCHAR(256) NOT NULL, 
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	resource_type VARCHAR(64) NOT NULL, 
	PRIMARY KEY (resource_id, "key")
);
INSERT INTO "tags" VALUES('i-0754d61a6982737f1','Name','web 한','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('vol-074b0a15b7f30485a','v','1','000000000000','us-east-1','volume');
INSERT INTO "tags" VALUES('i-0dac9e4420ac114e8','Name','web 한','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('i-04da46f8b2b494e75','Name','web 한','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('vol-07e403fce374b4a11','v','1','000000000000','us-east-1','volume');
INSERT INTO "tags" VALUES('i-0bb68300b500d0f4b','aws:ec2launchtemplate:id','lt-02ed39b96e3c8a62d','000000000000','us-east-1','instance');
INSERT INTO "tags" VALUES('i-0bb68300b500d0f4b','aws:ec2launchtemplate:version','1','000000000000','us-east-1','instance');
CREATE TABLE tombstones (
	kind VARCHAR(16) NOT NULL, 
	id VARCHAR(32) NOT NULL, 
	server_id VARCHAR(32) NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (kind, id, server_id)
);
INSERT INTO "tombstones" VALUES('volume','vol-0fedcba9876543210','server-1',1795410752.5);
CREATE TABLE usage (
	account VARCHAR(12) NOT NULL, 
	region VARCHAR(32) NOT NULL, 
	instances INTEGER NOT NULL, 
	PRIMARY KEY (account, region)
);
INSERT INTO "usage" VALUES('000000000000','us-east-1',4);
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
	attached FLOAT, observed_made BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "volumes" VALUES('vol-074b0a15b7f30485a','000000000000','us-east-1',2,1.79541075316912388804e+09,'us-east-1a','','',8,'server-1','gp3',3000,125,0,'i-0754d61a6982737f1','/dev/xvda',1,1.79541075316912388804e+09,1);
INSERT INTO "volumes" VALUES('vol-07e403fce374b4a11','000000000000','us-east-1',2,1.79541075316912579536e+09,'us-east-1a','','',8,'server-1','gp3',3000,125,0,'i-04da46f8b2b494e75','/dev/xvda',1,1.79541075316912388804e+09,1);
INSERT INTO "volumes" VALUES('vol-05bf82812877da1dd','000000000000','us-east-1',2,1.7954107556002392769e+09,'us-east-1a','','',8,'server-1','gp3',3000,125,0,'i-0bb68300b500d0f4b','/dev/xvda',1,1.7954107556002392769e+09,1);
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
INSERT INTO "vpcs" VALUES('vpc-0e3112ea826967012','000000000000','us-east-1',1,1.79541075291933012003e+09,'172.31.0.0/16','dopt-0acbf5423823a6e19',1,1,1);
CREATE INDEX ix_tags_scope ON tags (account, region);
CREATE INDEX ix_tags_value ON tags (account, region, "key", value);
CREATE INDEX ix_instances_image ON instances (account, region, image_id);
CREATE INDEX ix_instances_server ON instances (server_id);
CREATE INDEX ix_instances_reservation ON instances (account, region, reservation_id);
CREATE INDEX ix_instances_scope ON instances (account, region, created, id);
CREATE INDEX ix_volumes_scope ON volumes (account, region, created, id);
CREATE INDEX ix_volumes_instance ON volumes (instance_id);
CREATE INDEX ix_interfaces_address ON interfaces (address);
CREATE INDEX ix_interfaces_scope ON interfaces (account, region, created, id);
CREATE INDEX ix_interfaces_instance ON interfaces (instance_id);
CREATE INDEX ix_interfaces_vpc ON interfaces (vpc_id);
CREATE INDEX ix_images_scope ON images (account, region, created, id);
CREATE INDEX ix_key_pairs_scope ON key_pairs (account, region, created, id);
CREATE INDEX ix_vpcs_scope ON vpcs (account, region, created, id);
CREATE INDEX ix_subnets_scope ON subnets (account, region, created, id);
CREATE INDEX ix_security_groups_scope ON security_groups (account, region, created, id);
CREATE INDEX ix_security_group_rules_scope ON security_group_rules (account, region, created, id);
CREATE INDEX ix_rules_group ON security_group_rules (group_id);
CREATE INDEX ix_route_tables_scope ON route_tables (account, region, created, id);
CREATE INDEX ix_internet_gateways_scope ON internet_gateways (account, region, created, id);
CREATE INDEX ix_network_acls_scope ON network_acls (account, region, created, id);
CREATE INDEX ix_dhcp_options_scope ON dhcp_options (account, region, created, id);
CREATE INDEX ix_image_permissions_account ON image_permissions (account);
CREATE INDEX ix_launch_templates_scope ON launch_templates (account, region, created, id);
CREATE INDEX ix_placement_groups_scope ON placement_groups (account, region, created, id);
CREATE INDEX ix_fleets_scope ON fleets (account, region, created, id);
CREATE INDEX ix_tombstones_server ON tombstones (server_id);
CREATE INDEX ix_volumes_server ON volumes (server_id);
COMMIT;
