"""s3blobfs beside other filesystems over S3: the systems, and how a run measures one after the other."""
