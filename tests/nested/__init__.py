"""HVM proven without special hardware: an emulated server, and in it haneul's own probe and driver under real KVM."""
