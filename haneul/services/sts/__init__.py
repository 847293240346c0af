from haneul.services.sts import operations as operations  # fills the table of operations
