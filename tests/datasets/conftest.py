"""The network, as these tests see it."""

import http.client
import io
import urllib.error
import urllib.request
from email.message import Message

import pytest


class Response(io.BytesIO):
    """What urlopen gives for a document."""

    def __init__(self, data, *, cut=False):
        super().__init__(data[: len(data) // 2] if cut else data)
        self.headers = Message()
        self.headers["Content-Length"] = str(len(data))
        self.cut = cut

    def read(self, size=-1):
        data = super().read(size)
        if not data and self.cut:
            raise http.client.IncompleteRead(b"", 1)
        return data


@pytest.fixture
def serve_url(monkeypatch):
    """Serve documents by address in place of the network; returns the addresses that were asked for."""

    def serve(documents, *, cut=False):
        asked = []

        def urlopen(url, timeout):
            assert timeout > 0
            asked.append(url)
            if url not in documents:
                raise urllib.error.HTTPError(url, 404, "Not Found", Message(), None)
            return Response(documents[url], cut=cut)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return serve
