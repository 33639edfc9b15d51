"""The filesystem as programs see it: mounted, over a real S3 server."""
