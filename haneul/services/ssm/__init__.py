from haneul.services.ssm import operations as operations  # fills the table of operations
