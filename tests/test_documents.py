"""Files, and what must come out of them as text."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from generative_adapter.documents import Document, normalize_text, read_document
from generative_adapter.errors import DataError, EmptyContextError, MissingDependencyError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_pdf(lines: list[str]) -> bytes:
    """A PDF of one page with one line of text per entry, written by hand."""
    drawn = " ".join(f"({line}) Tj 0 -20 Td" for line in lines)
    stream = f"BT /F1 12 Tf 72 720 Td {drawn} ET".encode() if lines else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def test_normalize_text_by_hand() -> None:
    assert normalize_text("\n\na \r\nb\rc\t\n\n\n\n\n\nd\n\n\ne\n") == "a\nb\nc\n\n\nd\n\n\ne"


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.txt", "text/plain"), ("a.md", "text/markdown"), ("a.rst", "text/x-rst"), ("a.log", "text/plain")],
)
def test_text_files(tmp_path: Path, name: str, media_type: str) -> None:
    path = write(tmp_path / name, "Der Koch heißt Jürgen.\r\n")
    assert read_document(path) == Document(name, "Der Koch heißt Jürgen.", media_type)


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "a.txt", b"\xef\xbb\xbfplain")).text == "plain"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("from a pipe ü".encode())))
    assert read_document("-") == Document("standard input", "from a pipe ü", "text/plain")


def test_other_encodings_name_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "latin.txt", "four é".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text: byte 0xe9 at offset 5"):
        read_document(path)
    with pytest.raises(DataError, match="UTF-16"):
        read_document(write(tmp_path / "wide.txt", "wide".encode("utf-16")))


def test_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"binary file \(byte 0x00 at offset 3\)"):
        read_document(write(tmp_path / "a.bin", b"abc\0def"))


@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(EmptyContextError, match=r"a\.txt"):
        read_document(write(tmp_path / "a.txt", content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_document(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="this is a folder"):
        read_document(tmp_path)


def test_html_keeps_blocks_as_lines_and_drops_the_rest(tmp_path: Path) -> None:
    html = """<!doctype html><html><head><title>T</title><style>p {}</style></head><body>
      <nav><a href="/">Home</a></nav><!-- a comment -->
      <h1>The   <em>house</em></h1>
      <p>First line,<br>second
         line.</p><p>Next.</p>
      <ul><li>one</li><li><p>two</p></li></ul>
      <table><tr><th>name</th><th>town</th></tr><tr><td>Ann</td><td>Bonn</td></tr></table>
      <pre>  kept
    as is</pre><script>alert(1)</script></body></html>"""
    document = read_document(write(tmp_path / "page.html", html))
    assert document.media_type == "text/html"
    assert document.text == (
        "The house\n\nFirst line,\nsecond line.\n\nNext.\n\n- one\n- two\n\n"
        "name | town\nAnn | Bonn\n\n  kept\n    as is"
    )


def test_html_is_recognised_without_a_suffix_and_in_its_declared_encoding(tmp_path: Path) -> None:
    html = '<html><head><meta charset="iso-8859-1"></head><body>caf\xe9</body></html>'
    assert read_document(write(tmp_path / "page", html.encode("latin-1"))) == Document("page", "café", "text/html")
    with pytest.raises(DataError, match="byte 0xe9"):
        read_document(write(tmp_path / "undeclared.html", b"<html>caf\xe9</html>"))


def test_html_without_text(tmp_path: Path) -> None:
    with pytest.raises(EmptyContextError, match="holds no text"):
        read_document(write(tmp_path / "a.html", "<html><body><script>1</script></body></html>"))


def test_pdf(tmp_path: Path) -> None:
    document = read_document(write(tmp_path / "a.pdf", make_pdf(["The cook is Ann.", "She lives in Bonn."])))
    assert document == Document("a.pdf", "The cook is Ann.\nShe lives in Bonn.", "application/pdf")


def test_pdf_is_recognised_by_its_content(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "download", make_pdf(["Hello."]))).media_type == "application/pdf"


def test_pdf_without_text_says_scanned(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text; when its pages are scanned"):
        read_document(write(tmp_path / "scan.pdf", make_pdf([])))


@pytest.mark.parametrize("user_password", ["secret", ""])
def test_encrypted_pdf(tmp_path: Path, user_password: str) -> None:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["Hidden."])))
    writer.encrypt(user_password=user_password, owner_password="owner", algorithm="RC4-128")
    path = tmp_path / "locked.pdf"
    writer.write(path)
    if user_password:
        with pytest.raises(DataError, match=r"locked\.pdf: the PDF is encrypted"):
            read_document(path)
    else:
        assert read_document(path).text == "Hidden."


def test_damaged_pdf(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"):
        read_document(write(tmp_path / "a.pdf", b"%PDF-1.4\nnothing to see here"))


@pytest.mark.parametrize(("name", "module"), [("a.pdf", "pypdf"), ("a.html", "bs4")])
def test_missing_extra_prints_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[documents\]'"):
        read_document(write(tmp_path / name, "<p>text</p>"))
