"""The suite of blobs on S3, and what is that driver's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from groundplane.blobs import Blobs
from groundplane.blobs.conformance import BlobConformance

pytestmark = pytest.mark.anyio


@pytest.fixture
async def blobs(s3_url: str) -> AsyncIterator[Blobs]:
    async with Blobs.open(s3_url) as opened:
        yield opened


class TestS3Blobs(BlobConformance):
    @pytest.fixture
    async def blobs(self, s3_url: str) -> AsyncIterator[Blobs]:
        async with Blobs.open(s3_url) as opened:
            yield opened
