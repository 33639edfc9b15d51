"""``python -m s3blobfs``."""

from s3blobfs.cli.main import main

main()
