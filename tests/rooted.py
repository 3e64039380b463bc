"""Put the right root into a manifest, so that a spoilt one is refused for what is spoilt."""

import hashlib
import json

BLANK = b"0" * 64


def reroot(tree):
    body = json.dumps({**tree, "root": BLANK.decode()}).encode()
    return body.replace(BLANK, hashlib.sha256(body).hexdigest().encode(), 1)
