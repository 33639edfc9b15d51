"""The S3 object client: protocol, data plane, control plane, in-memory fake, scripted faults."""
