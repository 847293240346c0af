from haneul.services.iam import operations as operations  # fills the table of operations
