"""Documents: a file or standard input becomes plain text.

Plain text and Markdown are decoded as UTF-8, PDF goes through pypdf and HTML through Beautiful Soup (the extra
`documents`). Leaves out: reading text from scanned pages, and office formats.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generative_adapter.errors import DataError, EmptyContextError, MissingDependencyError

if TYPE_CHECKING:
    from bs4.element import Tag

STANDARD_INPUT = "-"

_INSTALL_DOCUMENTS = "pip install 'generative-adapter[documents]'"
_MEDIA_TYPES = {
    ".pdf": "application/pdf",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_DROPPED_TAGS = {"head", "script", "style", "nav", "noscript", "template", "svg"}
_LINE_TAGS = {"dd", "dt", "li", "option", "tr"}
_BLOCK_TAGS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "details", "div", "dl", "fieldset", "figcaption"),
    *("figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "main", "ol", "p", "pre"),
    *("section", "summary", "table", "tbody", "tfoot", "thead", "ul"),
}
_CELL_TAGS = {"td", "th"}
_LINE_BORDER, _BLOCK_BORDER, _KEPT_SPACE = "\r", "\f", "\v"  # white space that no text node brings along


@dataclass(frozen=True)
class Document:
    """The text of one document.

    Attributes:
        name: the file's name without its folder, or "standard input".
        text: the text, its lines ended by newlines, at most two blank lines in a row.
        media_type: what it was read as, "text/markdown" for example.
    """

    name: str
    text: str
    media_type: str


def read_document(path: str | Path) -> Document:
    """The text of a file, or of standard input when `path` is "-".

    Raises:
        DataError: when the file is missing, a folder, damaged, encrypted or no UTF-8 text.
        EmptyContextError: when it holds no text.
        MissingDependencyError: when a PDF or HTML file needs the extra `documents`.
    """
    name, content = _read_bytes(path)
    media_type = _media_type(name, content)
    if not content.strip():
        raise EmptyContextError(f"{name}: the document is empty; give one that holds text")
    if media_type == "application/pdf":
        text = _pdf_text(name, content)
    elif media_type == "text/html":
        text = _html_text(name, content)
    else:
        text = _decode(name, content)
    text = normalize_text(text)
    if not text:
        raise EmptyContextError(f"{name}: the document holds no text")
    return Document(name, text, media_type)


def normalize_text(text: str) -> str:
    """The text with newline characters as line ends, no spaces before them, and at most two blank lines in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def _read_bytes(path: str | Path) -> tuple[str, bytes]:
    if str(path) == STANDARD_INPUT:
        return "standard input", sys.stdin.buffer.read()
    path = Path(path)
    try:
        return path.name, path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder; give the files in it") from None
    except OSError as error:
        raise DataError(f"{path}: the file can't be read: {error.strerror or error}") from error


def _media_type(name: str, content: bytes) -> str:
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"%pdf-"):
        return "application/pdf"
    by_suffix = _MEDIA_TYPES.get(Path(name).suffix.lower(), "text/plain")
    if by_suffix == "text/plain" and start.startswith((b"<!doctype html", b"<html")):
        return "text/html"
    return by_suffix


def _decode(name: str, content: bytes) -> str:
    if content.startswith(_UTF16_MARKS):
        raise DataError(f"{name}: the text is UTF-16 (byte {content[0]:#04x} at offset 0); convert it to UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: not UTF-8 text: byte {content[error.start]:#04x} at offset {error.start}; "
            "convert it to UTF-8, or give a text, Markdown, PDF or HTML file"
        ) from None
    offset = content.find(b"\0")
    if offset >= 0:
        raise DataError(
            f"{name}: a binary file (byte 0x00 at offset {offset}); give a text, Markdown, PDF or HTML file"
        )
    return text.removeprefix("\ufeff")


def _pdf_text(name: str, content: bytes) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise MissingDependencyError(f"{name}: reading PDF needs pypdf: {_INSTALL_DOCUMENTS}") from None
    # pypdf raises built-in errors of many kinds on damaged files.
    damage = (PyPdfError, ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
    try:
        reader = PdfReader(io.BytesIO(content))
        encrypted = reader.is_encrypted
    except damage as error:
        raise DataError(f"{name}: the PDF is damaged: {error}") from error
    if encrypted:
        try:
            opened = bool(reader.decrypt(""))
        except (*damage, NotImplementedError):
            opened = False
        if not opened:
            raise DataError(f"{name}: the PDF is encrypted; save a copy without a password")
    try:
        pages = [page.extract_text() for page in reader.pages]
    except damage as error:
        raise DataError(f"{name}: the PDF is damaged: {error}") from error
    if not any(page.strip() for page in pages):
        raise DataError(f"{name}: the PDF holds no text; when its pages are scanned, run text recognition (OCR) first")
    return "\n\n".join(pages)


def _html_text(name: str, content: bytes) -> str:
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector
    except ImportError:
        raise MissingDependencyError(f"{name}: reading HTML needs Beautiful Soup: {_INSTALL_DOCUMENTS}") from None
    try:
        markup = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = EncodingDetector.find_declared_encoding(content, is_html=True)
        try:
            markup = content.decode(declared or "utf-8")
        except (UnicodeDecodeError, LookupError):
            markup = _decode(name, content)
    pieces: list[str] = []
    try:
        _collect_html(BeautifulSoup(markup, "html.parser"), pieces)
    except RecursionError:
        raise DataError(f"{name}: the HTML is nested too deeply to be read") from None
    borders = re.compile(f"[ \n{_LINE_BORDER}{_BLOCK_BORDER}]*[\n{_LINE_BORDER}{_BLOCK_BORDER}] *")
    return borders.sub(_newlines, "".join(pieces)).replace(_KEPT_SPACE, " ")


def _newlines(border: re.Match[str]) -> str:
    """An empty line around blocks and for two line breaks, else a line end."""
    between = border.group()
    return "\n\n" if _BLOCK_BORDER in between or between.count("\n") > 1 else "\n"


def _collect_html(tag: Tag, pieces: list[str]) -> None:
    """Appends the text below a tag, with marks where lines and blocks begin and end."""
    from bs4.element import NavigableString, PreformattedString
    from bs4.element import Tag as HtmlTag

    for child in tag.children:
        if isinstance(child, PreformattedString):
            continue  # a comment, doctype or processing instruction
        if isinstance(child, NavigableString):
            pieces.append(_inline_text(str(child), pieces, preformatted=child.find_parent("pre") is not None))
        elif isinstance(child, HtmlTag) and child.name not in _DROPPED_TAGS:
            border = _BLOCK_BORDER if child.name in _BLOCK_TAGS else _LINE_BORDER if child.name in _LINE_TAGS else ""
            if child.name in _CELL_TAGS and child.find_previous_sibling(list(_CELL_TAGS)):
                pieces.append(" | ")
            if pieces[-1:] != ["- "]:
                pieces.append(border)
            if child.name == "li":
                pieces.append("- ")
            _collect_html(child, pieces)
            pieces.append("\n" if child.name == "br" else border)


def _inline_text(text: str, pieces: list[str], *, preformatted: bool) -> str:
    if preformatted:
        return text.replace("\t", "    ").replace(" ", _KEPT_SPACE)
    text = re.sub(r"\s+", " ", text)
    before = next((piece for piece in reversed(pieces) if piece), "\n")
    return text.lstrip() if before[-1].isspace() else text
