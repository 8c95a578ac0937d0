"""Whether an object store can be trusted with tables: it must refuse to make an object twice, and encrypt as asked.

A store that ignores `If-None-Match` lets two writers make the same version of a table, and one of them lose what it
wrote without a word. So it is tried, once per process, before anything is opened there.
"""

import secrets
from functools import lru_cache

from healthingest.errors import StorageError
from healthingest.storage.objects import ObjectPath


def require_usable(output: ObjectPath, *, prod: bool) -> None:
    """Try the store that the output folder is in.

    Raises:
        StorageError: it cannot be reached; it makes an object that is there; or (prod) it does not encrypt objects as
            its options say.
    """
    _try(output, prod=prod, options=tuple(sorted(output.options.items())))


@lru_cache(maxsize=16)
def _try(output: ObjectPath, *, prod: bool, options: tuple[tuple[str, str], ...]) -> None:
    place = output / "checkpoint" / "probes" / secrets.token_hex(8)
    try:
        place.put_new(b"1")
        refuses = not place.put_new(b"2") and place.read_bytes() == b"1"
        tagged = place.read_tagged()
        first = place.replace_tagged(b"3", tagged[1]) if tagged else None
        again = place.replace_tagged(b"4", tagged[1]) if tagged else None
        if prod:
            _require_encrypted(place, dict(options))
        place.unlink(missing_ok=True)
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a store or the way to it raises
        raise StorageError(
            f"{output} cannot be used ({type(error).__name__}); look at its options in storage.yaml and the "
            "environment, at the bucket's name, and whether the store is up."
        ) from None
    if not refuses:
        raise StorageError(
            f"The store of {output} makes an object that is there already, though it is told not to (If-None-Match): "
            "two writers would lose what they wrote. Use a store with conditional writes."
        )
    if first is None or again is not None:
        raise StorageError(
            f"The store of {output} replaces an object whatever its ETag (If-Match): locks would be held twice. Use a "
            "store with conditional writes."
        )


def _require_encrypted(place: ObjectPath, options: dict[str, str]) -> None:
    wanted = options.get("aws_server_side_encryption")
    if not wanted:
        return
    found = _encryption_of(place, options)
    key = options.get("aws_sse_kms_key_id")
    other_key = key and not (found[1] or "").endswith(key.rpartition("/")[2])
    if found[0] != wanted or other_key:
        place.unlink(missing_ok=True)
        done = f"{found[0]} by another key, or none" if found[0] and other_key else found[0] or "nothing"
        raise StorageError(
            f"The store of {place.parts[1]} was told to encrypt by {wanted} and answers {done}; set the bucket's "
            "encryption, or another key, before data goes there."
        )


def _encryption_of(place: ObjectPath, options: dict[str, str]) -> tuple[str | None, str | None]:
    """How S3 says that an object is encrypted, and by which key: object_store does not tell, so that boto3 must."""
    try:
        import boto3
    except ImportError:
        raise StorageError(
            "Whether the store encrypts is asked by boto3, which is not installed; run: pip install healthingest[aws]"
        ) from None
    client = boto3.client(
        "s3", endpoint_url=options.get("aws_endpoint_url"), aws_access_key_id=options.get("aws_access_key_id"),
        aws_secret_access_key=options.get("aws_secret_access_key"), aws_session_token=options.get("aws_session_token"),
        region_name=options.get("aws_region") or options.get("aws_default_region"),
    )  # fmt: skip
    head = client.head_object(Bucket=place.parts[1], Key=place.key)
    return head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")
