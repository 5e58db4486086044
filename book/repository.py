"""Derive from the repository's address in `_config.yml` whatever has to name it.

    python book/repository.py                               rewrite what is derived
    python book/repository.py https://github.com/you/it     set the address first

Derived are the first two cells of every notebook (title and Colab badge, installation) and the
`repository-code` line of CITATION.cff; with an address given, also where its pages
would be. The tests check that they agree.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git|/)?")
CONFIG_LINE = re.compile(r"(?m)^(repository:\n(?:[ #].*\n)*?  url: )(\S+)$")
SITE_LINE = re.compile(r"(?m)^(    ogp_site_url: )(\S+)")
CITATION_LINE = re.compile(r"(?m)^(repository-code: )(.*)$")
BRANCH = "main"

BADGE = "[![Open in Colab](../book/figures/colab-badge.svg)]({link})"
INSTALL = """\
try:
    import recsys_helpers  # noqa: F401
except ModuleNotFoundError:
    %pip install --quiet git+{url}"""


def checked(url: str) -> str:
    """The address without `.git` or a slash at its end.

    Raises:
        ValueError: it isn't the address of a repository on GitHub, which is what Colab opens.
    """
    match = ADDRESS.fullmatch(url)
    if not match:
        raise ValueError(f"expected https://github.com/OWNER/REPOSITORY, received {url!r}.")
    return f"https://github.com/{match[1]}"


def address_parts(url: str) -> tuple[str, str]:
    """Owner and name of the repository at `url`."""
    owner, name = checked(url).split("/")[-2:]
    return owner, name


def address(root: Path = ROOT) -> str:
    """The address in `_config.yml`."""
    return checked(CONFIG_LINE.search((root / "_config.yml").read_text("utf-8"))[2])


def header(title: str, name: str, url: str) -> tuple[str, str]:
    """Sources of a notebook's first two cells.

    Args:
        title: first line of the first cell.
        name: of the notebook's file.
        url: the repository's address.
    """
    path = url.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/notebooks/{name}"
    return f"{title}\n\n{BADGE.format(link=link)}", INSTALL.format(url=url)


def derived(root: Path = ROOT) -> dict[Path, str]:
    """What every file that names the repository should contain."""
    url = address(root)
    texts = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        title = "".join(notebook["cells"][0]["source"]).split("\n")[0]
        for cell, source in zip(notebook["cells"], header(title, path.name, url), strict=False):
            cell["source"] = source.splitlines(keepends=True)
        texts[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    citation = root / "CITATION.cff"
    texts[citation] = CITATION_LINE.sub(rf"\g<1>{url}", citation.read_text("utf-8"))
    return texts


def main(arguments: list[str]) -> None:
    """Command line."""
    if arguments:
        (url,) = arguments
        config = ROOT / "_config.yml"
        text, count = CONFIG_LINE.subn(rf"\g<1>{checked(url)}", config.read_text("utf-8"))
        if count != 1:
            raise ValueError(f"expected one repository url in {config}, found {count}.")
        owner, name = address_parts(url)
        text = SITE_LINE.sub(rf"\g<1>https://{owner.lower()}.github.io/{name}/", text)
        config.write_text(text, "utf-8")
    for path, text in derived().items():
        if path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"rewrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
