"""Forms with files (RFC 7578, ``multipart/form-data``): the parts of a body by name, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from email.errors import MessageError
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP

from krl_runtime.bundle.further_inputs import IMAGE, FurtherInput, column_names
from krl_runtime.errors import UsageError

__all__ = ["FORM", "is_form", "parse_form", "sample_from"]

FORM = "multipart/form-data"
"""Content-Type of a form with files."""

_MOST_PARTS = 1100  # attributes and images of a sample; a model has a thousand attributes at most
_MOST_HEADER = 4096  # bytes of a part's header; real ones have some hundred
_MOST_BOUNDARY = 70  # letters, as RFC 2046 has it


def is_form(content_type: str) -> bool:
    """Return whether a Content-Type is that of a form with files."""
    return content_type.partition(";")[0].strip().lower() == FORM


def sample_from(
    body: bytes, content_type: str, query: Sequence[tuple[str, str]], inputs: Sequence[FurtherInput]
) -> bytes | dict[str, bytes | str]:
    """Return the image of a body; of a form, or for further inputs, a sample as a model's ``prepare`` takes it.

    Images are bytes in any case: text would be the path of a file of this machine.

    Args:
        body: An encoded image, or a form.
        content_type: The header of the request.
        query: Names and values of the address, which are further inputs.
        inputs: The model's further inputs; without any, the query means nothing.

    Raises:
        UsageError: The form cannot be read, a name is given twice, or text is given for an image.
    """
    if not is_form(content_type) and not inputs:
        return body
    parts = parse_form(body, content_type) if is_form(content_type) else {IMAGE: body}
    images = {IMAGE, *column_names(inputs)[1]}
    sample: dict[str, bytes | str] = {
        name: value if name in images else value.decode("utf-8", "replace") for name, value in parts.items()
    }
    for name, value in query if inputs else ():
        if name in images:
            raise UsageError(f"{name!r} is an image; send it as a file of a form: curl -F {name}=@image.jpg")
        if name in sample:
            raise UsageError(f"{name!r:.100} is given twice; give it once")
        sample[name] = value
    return sample


def parse_form(body: bytes, content_type: str) -> dict[str, bytes]:
    """Return the content of each part by its name.

    Args:
        body: The whole body, whose size is bounded already.
        content_type: The header of the request, which has the boundary.

    Raises:
        UsageError: The body is not such a form, has too many parts, or a name twice.
    """
    boundary = _parameter(content_type, "content-type", "boundary")
    if not boundary or len(boundary) > _MOST_BOUNDARY or not boundary.isascii():
        raise UsageError(f"the form's boundary is {boundary!r:.100}; accepted: 1 to {_MOST_BOUNDARY} ASCII letters")
    delimiter = b"\r\n--" + boundary.encode()
    _, *parts = (b"\r\n" + body).split(delimiter, _MOST_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise UsageError(
            f"the form has no end, or more than {_MOST_PARTS} parts; send each part after its boundary, and "
            "the boundary with -- at the end"
        )
    found: dict[str, bytes] = {}
    for part in parts[:-1]:
        name, content = _part(part)
        if name in found:
            raise UsageError(f"the form has {name!r:.100} twice; send each name once")
        found[name] = content
    return found


def _part(part: bytes) -> tuple[str, bytes]:
    """Return name and content of a part, from behind its boundary on."""
    head, separator, content = part.partition(b"\r\n\r\n")
    if not separator or len(head) > _MOST_HEADER or head.lstrip(b" \t")[:2] != b"\r\n":
        raise UsageError("a part of the form has no header; send Content-Disposition: form-data; name=NAME")
    try:
        headers = BytesHeaderParser(policy=HTTP).parsebytes(head.lstrip())
        disposition = str(headers.get("content-disposition", ""))
    except (MessageError, ValueError, IndexError) as error:
        raise UsageError(f"a header of the form cannot be read: {type(error).__name__}") from error
    name = _parameter(disposition, "content-disposition", "name")
    if not name or disposition.partition(";")[0].strip().lower() != "form-data":
        raise UsageError(f"a part of the form has the header {disposition[:80]!r}; accepted: form-data; name=NAME")
    if "content-transfer-encoding" in headers:
        raise UsageError(f"{name!r:.100} has a Content-Transfer-Encoding; send its bytes as they are")
    return name, content


def _parameter(value: str, header: str, name: str) -> str:
    """Return a parameter of a header's value; empty where there is none."""
    message = Message()
    try:
        message[header] = value
        found = message.get_param(name, "", header)
    except (MessageError, ValueError, IndexError):
        return ""
    return found if isinstance(found, str) else ""  # a tuple is of RFC 2231, which forms do not use
