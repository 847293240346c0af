"""One suite for each driver interface, run over every driver."""
