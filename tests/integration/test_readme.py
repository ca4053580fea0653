"""What the documents tell people to type works, and what they point to is there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"(src|data_prep)/\w+\.py")


def text(path):
    return path.read_text(encoding="utf-8") if path.exists() else ""


def typed(document):
    """Every line of its ```bash blocks and every `span` of code in its prose."""
    blocks = [block.replace("\\\n", " ") for language, block in FENCE.findall(document) if language == "bash"]
    lines = [part for block in blocks for line in block.splitlines() for part in re.split(r"&&|;|\|", line)]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", document))


def words(line):
    """A line's words up to a comment or `< file`; those with an ellipsis are placeholders and left out."""
    try:
        found = itertools.takewhile(lambda word: word not in ("<", ">"), shlex.split(line, comments=True))
        return [word for word in found if "…" not in word and "..." not in word]
    except ValueError:  # a span that is no command, such as one with a single quotation mark
        return []


def with_and_without(line):
    """`command [optional words]` → both commands."""
    return [line] if not (option := re.search(r" \[([^\]]+)\]", line)) else [
        line.replace(option[0], ""), line.replace(option[0], f" {option[1]}")
    ]  # fmt: skip


def collected():
    """(where, command) for every command of ours that people are shown."""
    found = [(path.name, line) for path in DOCUMENTS for line in typed(text(path))]
    for path in EXPERIMENTS:
        command = re.search(r"^# Command: *(.*)$", text(path), re.MULTILINE)
        found += [(path.name, line) for line in with_and_without(command[1] if command else "# no command")]
    for path in sorted((ROOT / "conf").glob("*.yaml")):  # their --help pages
        found += [(f"{path.stem} --help", line) for line in re.findall(r"^ +(python .*)$", text(path), re.MULTILINE)]
    return [(where, line.strip()) for where, line in found]


COMMANDS = [(where, line) for where, line in collected() if any(SCRIPT.fullmatch(word) for word in words(line)[1:])]


@pytest.fixture
def check(command, tmp_path):
    """Compose what a line asks for, by the script itself; of a sweep every point."""

    def run(line):
        given = words(line)
        at = next(index for index, word in enumerate(given) if SCRIPT.fullmatch(word))
        assert (ROOT / given[at]).is_file(), f"{given[at]} does not exist"
        arguments = given[at + 1 :]
        if "--cfg" in arguments:
            del arguments[arguments.index("--cfg") : arguments.index("--cfg") + 2]
        overrides = [word for word in arguments if word not in ("-m", "--help")]
        for point in points(overrides) if "-m" in arguments else [overrides]:
            result = command(tmp_path, given[at], *point, "--cfg", "job")
            assert result.status == 0, result.err
            assert result.out.count("\n") > 0
        assert list(tmp_path.iterdir()) == []

    return run


def points(overrides):
    """`a=1,2 b=3` → `a=1 b=3` and `a=2 b=3`."""
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
        choices.append([f"{override.input_line.split('=')[0]}={value}" for value in values])
    return list(itertools.product(*choices))


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=[f"{where}: {line}" for where, line in COMMANDS])
def test_the_command_composes(check, where, line):
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "python src/train.py modle.depth=3",
        "python src/train.py +experiment=deep_sweep",
        "python src/train.py -m model.depth=3,4 budget=quick,none",
        "python src/tarin.py",
        "python data_prep/prepare.py dataset=set6  # a comment",
    ],
)
def test_a_command_that_would_not_work_is_found(check, line):
    with pytest.raises(AssertionError, match=r"modle|deep_sweep|budget/none|tarin|set6"):
        check(line)


def test_there_are_commands_everywhere():
    places = {where for where, _ in COMMANDS}
    experiments = {path.name for path in EXPERIMENTS}
    assert places >= {"README.md", "train --help", "evaluate --help", "prepare --help", "verify --help"} | experiments


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    lines = [words(line) for line in typed(text(path))]
    named = {word for line in lines if line[:1] == ["make"] for word in line[1:] if "=" not in word and word[0] != "-"}
    assert named - targets == set()


def test_the_readme_names_the_two_commands():
    assert {"make demo", "make test"} <= {" ".join(words(line)) for line in typed(text(README))}


def test_every_file_of_the_tree_exists():
    (tree,) = (block for _, block in FENCE.findall(text(README)) if block.startswith("src/\n"))
    entries, folders = 0, {}
    for line in tree.splitlines():
        indent, name, rest = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        path = folders.get(len(indent) - 2, ROOT) / name
        assert path.exists(), line
        assert path.is_dir() == name.endswith("/"), line
        folders[len(indent)] = path
        if path.is_dir():
            for mentioned in re.findall(r"\w+\.(?:py|yaml|tsv)", rest):
                assert (path / mentioned).is_file(), f"{line}: {mentioned}"
        entries += 1
    assert entries > 20


def test_the_table_of_experiments_is_whole():
    named = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", text(README), re.MULTILINE)
    assert {name for name, _ in named} == {path.stem for path in EXPERIMENTS}
    for name, count in named:
        params = OmegaConf.select(
            OmegaConf.load(ROOT / f"conf/experiment/{name}.yaml"), "hydra.sweeper.params", default={}
        )
        assert len(points([f"{key}={values}" for key, values in params.items()])) == int(count), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_and_pictures_resolve(path):
    prose = FENCE.sub("", text(path))
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    }
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, heading = target.partition("#")
        assert (path.parent / file).exists(), target
        if not file:
            assert heading in headings, target
        if file.endswith(".png"):
            with Image.open(path.parent / file) as picture:
                picture.load()
                assert min(picture.size) > 100, target


def test_no_block_is_left_empty():
    assert [block for _, block in FENCE.findall(text(README)) if not block.strip()] == []
    assert len(FENCE.findall(text(README))) >= 4
