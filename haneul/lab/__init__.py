"""The generations of virtualization side by side: workloads, measurements, the report."""
