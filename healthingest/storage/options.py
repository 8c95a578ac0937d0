"""How object stores, and queues that tell of them, are reached: `client_configs/storage.yaml` over the environment.

Without the file the usual variables count (AWS_*, AZURE_*, GOOGLE_*), and what each cloud's machines are given. One
set of options goes to delta-rs, polars and obstore alike: all three stand on the object_store library of Apache Arrow
(https://docs.rs/object_store/latest/object_store/), whose keys they share.
"""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from healthingest.contracts import strict_yaml
from healthingest.contracts.duration import Duration
from healthingest.contracts.rules import Strict
from healthingest.contracts.secret import SecretRef, secret

FILE = "storage.yaml"
#: Schemes that name an object store.
SCHEMES = ("s3", "az", "gs")
#: Variables of the environment that are options of stores; others with such prefixes steer other tools.
_VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_ENDPOINT_URL_STS", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_METADATA_ENDPOINT",
        "AWS_IMDSV1_FALLBACK", "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_ENDPOINT",
        "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_AUTHORITY_HOST", "AZURE_STORAGE_USE_EMULATOR", "AZURE_ALLOW_HTTP", "AZURE_MSI_ENDPOINT",
    ),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY",
           "GOOGLE_APPLICATION_CREDENTIALS"),
}  # fmt: skip


class S3(Strict):
    """Amazon S3, or a store that speaks its protocol."""

    #: Another server than Amazon's, e.g. https://minio.example.org.
    endpoint_url: StrictStr | None = None
    region: StrictStr | None = None
    access_key_id: SecretRef | None = None
    secret_access_key: SecretRef | None = None
    #: Plain HTTP; for tests on one machine.
    allow_http: StrictBool = False
    virtual_hosted_style_request: StrictBool | None = None
    #: What the store shall encrypt objects with; in prod it is checked that it does.
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    #: The KMS key for it.
    kms_key_id: StrictStr | None = None

    @model_validator(mode="after")
    def _key_of_kms(self) -> "S3":
        if self.kms_key_id and not (self.encryption or "").startswith("aws:kms"):
            raise ValueError("kms_key_id goes with encryption: aws:kms or aws:kms:dsse")
        return self

    def plain(self) -> dict[str, str]:
        """Options under object_store's names."""
        return _said(
            aws_endpoint_url=self.endpoint_url, aws_region=self.region, aws_access_key_id=_secret(self.access_key_id),
            aws_secret_access_key=_secret(self.secret_access_key), aws_allow_http="true" if self.allow_http else None,
            aws_virtual_hosted_style_request=_truth(self.virtual_hosted_style_request),
            aws_server_side_encryption=self.encryption, aws_sse_kms_key_id=self.kms_key_id,
        )  # fmt: skip


class Azure(Strict):
    """Azure Blob Storage; the URI names the container, `account_name` the account."""

    account_name: StrictStr | None = None
    account_key: SecretRef | None = None
    client_id: StrictStr | None = None
    tenant_id: StrictStr | None = None
    client_secret: SecretRef | None = None
    endpoint_url: StrictStr | None = None
    allow_http: StrictBool = False
    #: Azurite, on its usual ports.
    use_emulator: StrictBool = False

    def plain(self) -> dict[str, str]:
        """Options under object_store's names."""
        return _said(
            azure_storage_account_name=self.account_name, azure_storage_account_key=_secret(self.account_key),
            azure_storage_client_id=self.client_id, azure_storage_tenant_id=self.tenant_id,
            azure_storage_client_secret=_secret(self.client_secret), azure_storage_endpoint=self.endpoint_url,
            azure_allow_http="true" if self.allow_http else None,
            azure_storage_use_emulator="true" if self.use_emulator else None,
        )  # fmt: skip


class Google(Strict):
    """Google Cloud Storage."""

    #: A service account's JSON file; without it the machine's own credentials count.
    service_account_path: StrictStr | None = None

    def plain(self) -> dict[str, str]:
        """Options under object_store's names."""
        return _said(google_service_account_path=self.service_account_path)


class Queue(Strict):
    """An SQS queue to which S3 tells of new objects; credentials are those of `s3`, unless it has its own."""

    #: Its URL, e.g. https://sqs.eu-central-1.amazonaws.com/123456789012/landing.
    queue: StrictStr
    #: The client whose files are taken from it; without it, everybody's.
    client: StrictStr | None = None
    #: Without it, what the URL says, then what `s3` and the environment say.
    region: StrictStr | None = None
    #: Where it is asked, if not at the URL's own host.
    endpoint_url: StrictStr | None = None
    access_key_id: SecretRef | None = None
    secret_access_key: SecretRef | None = None
    #: Plain HTTP; for tests on one machine.
    allow_http: StrictBool = False

    @model_validator(mode="after")
    def _reachable(self) -> "Queue":
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^/?#@\s]+)+", self.queue):
            raise ValueError("queue: write the queue's URL, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
        if not self.endpoint.startswith("https://") and not self.allow_http:
            raise ValueError("the queue is asked over plain HTTP; write https://, or allow_http: true on one machine")
        return self

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return self.queue.rpartition("/")[2]

    @property
    def endpoint(self) -> str:
        """The server to ask."""
        return self.endpoint_url or "/".join(self.queue.split("/")[:3])

    def plain(self) -> dict[str, str]:
        """Region and keys, under object_store's names."""
        of_url = re.search(r"[/.]([a-z]{2,}(?:-[a-z]+)+-[0-9])\.", self.queue)  # names of queues have no dots
        return _said(
            aws_region=self.region or (of_url[1] if of_url else None), aws_access_key_id=_secret(self.access_key_id),
            aws_secret_access_key=_secret(self.secret_access_key),
        )  # fmt: skip


class Discovery(Strict):
    """How new files are found, beside looking at the whole landing zone in each tick."""

    #: The queues that tell of new files; with any, the landing zone is listed only now and then.
    sqs: tuple[Queue, ...] = ()
    #: How often it is listed nevertheless, for what no queue told of.
    full_listing_every: Duration = timedelta(hours=1)

    @field_validator("full_listing_every")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("write a duration like 30m or 6h, at least 1m")
        return value

    @field_validator("sqs")
    @classmethod
    def _each_once(cls, value: tuple[Queue, ...]) -> tuple[Queue, ...]:
        if len({queue.queue for queue in value}) < len(value):
            raise ValueError("a queue stands here twice; keep one of them")
        return value


class Stores(Strict):
    """`storage.yaml`: options for each kind of store, and how new files are found."""

    s3: S3 = Field(default_factory=S3)
    az: Azure = Field(default_factory=Azure)
    gs: Google = Field(default_factory=Google)
    discovery: Discovery = Field(default_factory=Discovery)


def configs_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Where the configs lie (design, section 4)."""
    home = Path(env.get("HEALTHINGEST_HOME") or Path.cwd()).expanduser().resolve()
    return Path(env.get("HEALTHINGEST_CONFIGS") or home / "client_configs").expanduser().resolve()


def load_stores(configs: Path) -> Stores:
    """The options of `storage.yaml`, or those of an empty one.

    Raises:
        ConfigError: an option is misspelt, or has no such value.
    """
    file = configs / FILE
    return strict_yaml.load(file).parse(Stores) if file.exists() else Stores()


def options_for(scheme: str) -> dict[str, str]:
    """Options for all stores of a scheme, under object_store's names: the environment's, and over them the file's.

    Raises:
        ConfigError: as `load_stores`.
    """
    said = {name.lower(): value for name in _VARIABLES[scheme] if (value := os.environ.get(name))}
    return said | _of_file(scheme, configs_folder())


def _of_file(scheme: str, configs: Path) -> dict[str, str]:
    file = configs / FILE
    try:
        info = file.stat()
    except FileNotFoundError:
        return {}
    return dict(_parsed(scheme, configs, info.st_mtime_ns, info.st_size))


@lru_cache(maxsize=16)
def _parsed(scheme: str, configs: Path, _changed: int, _size: int) -> dict[str, str]:
    store: S3 | Azure | Google = getattr(load_stores(configs), scheme)
    return store.plain()


def _secret(reference: str | None) -> str | None:
    return secret(reference) if reference else None


def _truth(value: bool | None) -> str | None:  # noqa: FBT001
    return None if value is None else str(value).lower()


def _said(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}
