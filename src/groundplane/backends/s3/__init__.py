"""S3 and what speaks like it: settings from the URL, objects over obstore, administration of buckets over boto3.

Everything is imported when it is used: obstore takes a tenth of a second, boto3 half a second.
"""

from groundplane.backends.s3.address import S3Address, parse_url

__all__ = ["S3Address", "parse_url"]
