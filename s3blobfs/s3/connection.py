"""How S3 is reached: session, credentials, endpoint, certificate authorities; the same for both libraries.

boto3 resolves what the AWS configuration says (profile, environment, files, instance role), and obstore is
told the result, so that the two planes cannot disagree. Credentials pass through memory only.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import boto3
import botocore.exceptions
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials
from obstore.store import S3Store

from s3blobfs.config import Encryption, S3Options
from s3blobfs.errors import UsageError
from s3blobfs.s3.error_map import no_credentials

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from obstore.store import ClientConfig, S3Config, S3Credential

DEFAULT_REGION = "us-east-1"

_CREDENTIALS_TTL = datetime.timedelta(minutes=5)
"""How long obstore keeps what the provider gave. botocore renews what expires at the latest ten minutes
before it does (``RefreshableCredentials``), so what it gives is good for this long at least."""


class S3Connection:
    """Everything a bucket's client needs that is not about the bucket.

    Making one may block for seconds: the AWS chain asks the instance's metadata service last. Raises
    :class:`~s3blobfs.errors.AccessDenied` when there are no credentials and
    :class:`~s3blobfs.errors.UsageError` for a profile or a CA file that does not exist.
    """

    def __init__(self, options: S3Options) -> None:
        self.options = options
        if options.ca_bundle is not None and not options.ca_bundle.is_file():
            raise UsageError(f"no certificate authorities: {options.ca_bundle} is not a file")
        core = botocore.session.Session(profile=options.profile)
        try:
            session = boto3.Session(botocore_session=core, region_name=options.region)
            credentials = session.get_credentials()
        except botocore.exceptions.ProfileNotFound as error:
            raise UsageError(f"{error}; see `aws configure list-profiles`") from error
        except botocore.exceptions.BotoCoreError as error:
            raise no_credentials(str(error)) from error
        if credentials is None:
            raise no_credentials()
        self._credentials: Credentials = credentials
        self._ca_bundle = _ca_bundle(options, core)
        self.boto: S3Client = session.client(
            "s3",
            region_name=options.region or session.region_name or DEFAULT_REGION,
            endpoint_url=options.endpoint_url,
            verify=str(self._ca_bundle) if self._ca_bundle else None,
            config=_boto_config(options),
        )
        self.region: str = self.boto.meta.region_name
        self.endpoint_url: str = self.boto.meta.endpoint_url
        """The one in effect: of the options, of the AWS configuration, or AWS's own."""
        if _is_private(self.endpoint_url):
            # Bodies have checksums, which are signed. That the body is signed, too, and so read and hashed
            # once more, is against somebody on the way. Not before: the endpoint is boto3's to find out.
            signing: Any = self.boto.meta.config
            signing.s3 = {**signing.s3, "payload_signing_enabled": False}
        self._custom_endpoint = urlsplit(self.endpoint_url).hostname not in (
            f"s3.{self.region}.amazonaws.com",
            "s3.amazonaws.com",
        )

    def obstore(self, bucket: str) -> S3Store:
        """A store of ``bucket``. Each has a connection pool of its own."""
        path_style = self.options.path_style
        if path_style is None:
            path_style = self._custom_endpoint
        # A wildcard certificate covers one label: such a bucket has no host name of its own under TLS.
        path_style = path_style or "." in bucket
        endpoint = self.endpoint_url if path_style else _virtual_host(self.endpoint_url, bucket)
        config: S3Config = {
            "region": self.region,
            "endpoint": endpoint,
            # obstore would prefer AWS_ENDPOINT_URL_S3 of the environment, even to what an option says.
            "aws_endpoint_url_s3": endpoint,
            "virtual_hosted_style_request": not path_style,
            # Checked by the server as the body arrives. It costs nothing: the signature hashes the body
            # anyway. The signature alone does not do, not every server compares the hash it covers.
            "checksum_algorithm": "SHA256",
            "conditional_put": "etag",
            "skip_signature": False,
            "unsigned_payload": False,
        }
        if self.options.encryption is not Encryption.NONE:
            config["server_side_encryption"] = self.options.encryption.value
        if self.options.kms_key_id is not None:
            config["sse_kms_key_id"] = self.options.kms_key_id
        return S3Store(
            bucket,
            config=config,
            client_options=self._obstore_client_options(),
            # Retries are ours: obstore's know nothing of our deadline and are not counted.
            retry_config={"max_retries": 0},
            credential_provider=self.obstore_credential,
        )

    def _obstore_client_options(self) -> ClientConfig:
        options: ClientConfig = {
            "allow_http": self.endpoint_url.startswith("http://"),
            "connect_timeout": datetime.timedelta(seconds=self.options.connect_timeout_s),
            "timeout": datetime.timedelta(seconds=self.options.request_timeout_s),
        }
        if self._ca_bundle is not None:
            options["root_certificate"] = self._ca_bundle.read_bytes()
        return options

    def obstore_credential(self) -> S3Credential:
        """What obstore asks for when it has none, or none that is still good. botocore renews meanwhile."""
        frozen = self._credentials.get_frozen_credentials()
        if frozen.access_key is None or frozen.secret_key is None:
            raise botocore.exceptions.NoCredentialsError
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + _CREDENTIALS_TTL,
        }

    def storing_headers(self) -> dict[str, Any]:
        """boto3 parameters of every request that makes an object: encryption and storage class."""
        headers: dict[str, Any] = {}
        if self.options.encryption is not Encryption.NONE:
            headers["ServerSideEncryption"] = self.options.encryption.value
        if self.options.kms_key_id is not None:
            headers["SSEKMSKeyId"] = self.options.kms_key_id
        if self.options.storage_class is not None:
            headers["StorageClass"] = self.options.storage_class
        return headers

    def close(self) -> None:
        """Close boto3's pooled connections; obstore's go with their stores."""
        self.boto.close()


def _boto_config(options: S3Options) -> Config:
    style: Literal["auto", "path", "virtual"] = "auto"
    if options.path_style is not None:
        style = "path" if options.path_style else "virtual"
    elif options.endpoint_url is not None:
        style = "path"
    return Config(
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.request_timeout_s,
        max_pool_connections=options.max_threads,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": style},
    )


def _ca_bundle(options: S3Options, core: botocore.session.Session) -> Path | None:
    """Also from ``AWS_CA_BUNDLE`` or the profile's ``ca_bundle``, which obstore does not know."""
    configured = options.ca_bundle or core.get_config_variable("ca_bundle")
    return Path(configured) if configured else None


def _is_private(endpoint_url: str) -> bool:
    """Nobody between us and the server can alter what is sent: TLS, or the same machine."""
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    try:
        return parts.scheme == "https" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _virtual_host(endpoint_url: str, bucket: str) -> str:
    parts = urlsplit(endpoint_url)
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))
