"""A page as one HTML file without dependencies: no server, no network, no framework.

A Content-Security-Policy allows only this style and this script, by their hashes, so the page cannot send requests and
no text in the data can run as script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from cryobench.text import json_text


def assembled(template: str, style: str, script: str, data: Any) -> str:
    """The page: {{policy}}, {{style}}, {{script}} and {{data}} of the template, filled. data: for JSON, finite."""
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = json_text(data, allow_nan=False, separators=(",", ":"))
    # nothing in the JSON may end the script element or open a comment
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    contents = {"policy": policy, "style": style, "script": script, "data": text}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: contents[found[1]], template)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
