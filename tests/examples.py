"""Examples of the READMEs and docs/: fenced blocks, their shell commands, and commands within sentences."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pq_command

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELL = ("pq ", "python ", "./scripts/", "scripts/", "torchrun ", "pip ")


@dataclass(frozen=True)
class Block:
    """language: bash also for an unlabelled block that begins with a command; "" for what a command printed."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks():
    """Every fenced block, in order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            language = match[1] or ("bash" if match[2].startswith(SHELL) else "")
            found.append(Block(str(page.relative_to(ROOT)), line, language, match[2]))
    return found


def shell_lines(text):
    """The commands of a block: continued lines joined, comments and a closing '...' dropped."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in joined.splitlines())
    return [without_ellipsis(line) for line in lines if line]


def without_ellipsis(command):
    """Without the '...' that stands for more flags."""
    return command.removesuffix("...").strip()


def spans():
    """Commands and flags that stand in sentences: (page, text)."""
    found = []
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        found += [
            (str(page.relative_to(ROOT)), span) for span in SPAN.findall(prose) if span.startswith((*SHELL, "--"))
        ]
    return list(dict.fromkeys(found))


def docstring_commands(docstring):
    """The examples of a command's docstring: lines indented by two, with what follows them and begins with a flag.

    As they can be pasted into a shell: the line before such a one ends with a backslash.
    """
    found, going_on = [], False
    for line in docstring.splitlines():
        if re.match(r"  (pq|torchrun) ", line):
            found.append(line.strip())
            going_on = True
        elif going_on and re.match(r"      -", line):
            assert found[-1].endswith(" \\"), f"{found[-1]}: a backslash is missing at the line's end"
            found[-1] = found[-1].removesuffix("\\") + line.strip()
        else:
            going_on = False
    return [without_ellipsis(command) for command in found]


def words(command):
    """The words of a command, without what starts it: ("run", ["--data", "DIR"]); (None, all) for another program."""
    parts = shlex.split(command)
    if parts[0] == "torchrun":
        parts = parts[next(i for i, part in enumerate(parts) if part.endswith(".py")) :]
    if parts[0] == "python":
        parts = parts[1:]
    if parts[0] == "pq":
        return parts[1], parts[2:]
    script = re.fullmatch(r"scripts/(\w+)\.py", parts[0])
    name = script and {"run_inference": "run"}.get(script[1], script[1].replace("_", "-"))
    return (name, parts[1:]) if name in pq_command.available() else (None, parts)
