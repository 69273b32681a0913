"""Hooks of the documentation's site: `mkdocs build --strict` calls them (mkdocs.yml).

Pages link to files of the repository as they would on a code host. README.md becomes the first page,
the pages in OUTSIDE stand in the site under their own paths, and any other file that a page links to
is copied to files/. Pages in docs/tutorial/ enter the navigation by themselves. In the finished
page a word of code is not cut at its hyphens, and cells of little or much text are marked
(docs/site.css).
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"README.md": "index.md"} | {
    name: name
    for name in ("experiments/README.md", "benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
}
LINK = re.compile(r"(\]\(|src=\"|srcset=\"|href=\")([^)\s\"#:]+)(#[^)\s\"]*)?(?=[)\"])")
BLOCK = re.compile(r"(<pre\b.*?</pre>)", re.S)
CODE = re.compile(r"<code>([^<]*)</code>")
CELL = re.compile(r"<td>(.*?)</td>", re.S)
SHORT, LONG = 16, 60  # characters of a cell that stays on a line, and of one that has to be wide
log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: Any) -> Any:
    """Put the pages of docs/tutorial/ into the navigation."""
    named = str(config.nav)
    for part in config.nav:
        if "Tutorial" in part:
            found = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
            part["Tutorial"] += [
                f"tutorial/{p.name}" for p in found if f"'tutorial/{p.name}'" not in named
            ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files of the repository that stand outside docs/."""
    docs = Path(config.docs_dir)
    pages = {path: uri for path, uri in OUTSIDE.items() if (ROOT / path).is_file()}
    for path, uri in pages.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    texts = [(f"docs/{p.relative_to(docs).as_posix()}", p) for p in docs.rglob("*.md")]
    for place, page in [*texts, *((path, ROOT / path) for path in pages)]:
        for target in _targets(place, page.read_text(encoding="utf-8")):
            inside = target.startswith("docs/") or target in pages
            if not inside and (ROOT / target).is_file() and f"files/{target}" not in files.src_uris:
                source = str(ROOT / target)
                files.append(File.generated(config, f"files/{target}", abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links as a code host follows them into links within the site."""
    here = page.file.src_uri
    place = next((path for path, uri in OUTSIDE.items() if uri == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), match[2]))
        if target.startswith("docs/"):
            uri = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            uri = OUTSIDE.get(target, f"files/{target}")
        else:
            log.warning("%s: %s is no file of the repository", place, match[2])
            return match[0]
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{match[1]}{relative}{match[3] or ''}"

    lines = [line if code else LINK.sub(moved, line) for line, code in _lines(markdown)]
    return "\n".join(_apart(lines))


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Keep the words of code whole, and mark the cells that hold much text."""
    parts = BLOCK.split(html)  # every other part is a block of code
    parts[::2] = [CODE.sub(_whole, CELL.sub(_marked, part)) for part in parts[::2]]
    return "".join(parts)


def _whole(match: re.Match[str]) -> str:
    """Return a piece of code whose words with a hyphen are not cut at it."""
    words = (f"<span>{w}</span>" if "-" in w else w for w in match[1].split())
    return f"<code>{' '.join(words)}</code>"


def _marked(match: re.Match[str]) -> str:
    size = len(re.sub(r"<[^>]*>", "", match[1]))
    kind = "short" if size <= SHORT else "long" if size > LONG else ""
    return f'<td class="{kind}">{match[1]}</td>' if kind else match[0]


def _apart(lines: list[str]) -> list[str]:
    """Put a blank line before a list that follows a paragraph: a code host needs none."""
    result: list[str] = []
    listed = True  # within a list, or behind a blank line
    for line, code in _lines("\n".join(lines)):
        begins = not code and re.match(r" {0,3}([-*]|\d+\.) ", line) is not None
        if begins and not listed:
            result.append("")
        listed = begins or (listed and bool(line.strip()) and bool(result)) or not line.strip()
        if line.strip() and not begins and not line.startswith(" "):
            listed = False
        result.append(line)
    return result


def _targets(place: str, text: str) -> list[str]:
    """Return the files of the repository that a page links to."""
    found = [m[2] for line, code in _lines(text) if not code for m in LINK.finditer(line)]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(place), one)) for one in found]


def _lines(text: str) -> list[tuple[str, bool]]:
    """Return the lines, and whether each is code."""
    lines, fenced = [], False
    for line in text.split("\n"):
        mark = line.startswith("```")
        lines.append((line, fenced or mark or line.startswith("    ")))
        fenced ^= mark
    return lines
