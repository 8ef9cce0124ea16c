"""What may be in the repository, and what may not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    *(
        ".ci",
        ".gitignore",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "data",
    ),
    *("environment.yml", "lib", "notebooks", "pyproject.toml", "reports"),
}
LARGEST = 2_000_000  # bytes
MACHINE_PATH = re.compile(
    r"(?<![\w/.:~)-])/(?:home|Users|root|tmp|var|opt|mnt|work)/\w|\b[A-Z]:\\(?:Users|Program)"
)


def tracked():
    """Return the files that git holds or is about to hold; without git there is nothing to say."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def text(file):
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


in_git = pytest.mark.skipif(not tracked(), reason="not a git checkout, or nothing added yet")


@in_git
def test_top_level_holds_only_the_agreed_names():
    assert {file.relative_to(ROOT).parts[0] for file in tracked()} <= TOP


@in_git
def test_no_large_file():
    assert [str(file) for file in tracked() if file.stat().st_size > LARGEST] == []


@in_git
def test_no_machine_path_in_a_text_file():
    assert [str(file) for file in tracked() if MACHINE_PATH.search(text(file))] == []


@pytest.mark.parametrize("where", ["home/ada", "Users/ada", "tmp/out"])
def test_machine_path_pattern_bites(where):
    assert MACHINE_PATH.search(f'open("/{where}/x.csv")')
    assert not MACHINE_PATH.search(f"https://example.org/{where}/x.csv")


@in_git
def test_the_package_is_not_ignored():
    files = {str(file.relative_to(ROOT)) for file in tracked()}
    assert "lib/citypaths/__init__.py" in files
    assert not [name for name in files if name.startswith("data/") and name != "data/README.md"]


README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize(
    "code", [c for c in EXAMPLES if "live_dataset" not in c], ids=lambda code: code.split("\n")[0]
)
def test_an_example_of_the_readme_runs_as_printed(code, tmp_path):
    env = os.environ | {"CITYPATHS_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_engine_example_counts_what_it_asks_for(tmp_path):
    (code,) = (code for code in EXAMPLES if "live_dataset" in code)
    code += "print(trees.mm.shape == (len(japan), 3), spd.counts['train'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole, train = done.stdout.split()
    assert whole == "True"
    assert 900_000 < int(train) < 1_100_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "reports/README.md"])
def test_links_of_a_page_lead_somewhere(page):
    """Links to files of the repository; a fragment is a heading of its page."""
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (folder / target).exists(), f"{page} links to {target}"
