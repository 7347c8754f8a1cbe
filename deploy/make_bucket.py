"""Creates the bucket of ``XDUB_STORE__URL`` on the S3 server of ``XDUB_STORE__S3_ENDPOINT`` where it is missing.

The keys are those of every S3 client: ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``.
"""

import os
from urllib.parse import urlsplit

from minio import Minio

from xdub_platform.settings import Settings, load_settings


def make_bucket(settings: Settings) -> str:
    """Returns the bucket's name."""
    store, endpoint = urlsplit(settings.store.url or ""), urlsplit(settings.store.s3_endpoint or "")
    if store.scheme != "s3" or not store.hostname or not endpoint.hostname:
        raise SystemExit("make_bucket.py: set XDUB_STORE__URL=s3://bucket/prefix and XDUB_STORE__S3_ENDPOINT")
    client = Minio(
        endpoint.netloc,
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    )
    if not client.bucket_exists(store.hostname):
        client.make_bucket(store.hostname)
    return store.hostname


if __name__ == "__main__":
    make_bucket(load_settings())
