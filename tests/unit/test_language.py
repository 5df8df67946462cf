"""Text is plain English with the field's standard terms: phrases of earlier versions' private dialect are gone.

Each pattern is specific enough to have no match in ordinary prose. Reports are per file and line.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENDINGS = (".py", ".md", ".html", ".yaml", ".yml", ".sh", ".ipynb", ".cfg", ".toml", "Makefile")

# pattern -> what to write instead. Case is ignored.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bso many\b": "this many, or N",
    r"\bwhere there (is|are) none\b": "if there is none",
    r"\bof before\b|\b(the )?one before is\b": "previous, earlier",
    r"\banew\b": "again",
    r"\btaken for\b": "predicted as, interpreted as",
    r"\b(goes|go|going|went) on (with|from|where|as|after)\b": "resumes, continues",
    r"\band (goes|go) on\b": "and continues",
    r"\bleave[^.]{0,60}\baway\b": "remove",
    r"\bstands? there\b": "is listed",
    r"\bknobs?\b": "field",
    r"\bwhoever\b": "the one that",
    r"\bon its making\b": "on construction",
    r"\b(is|are|was) (said|told) (once|by)\b": "is printed once",
    r"\blabels? (the )?pictures\b|\bpictures (to|of|in|by|are|that|and)\b": "classify images, images",
    r"\brun folders?\b": "run directory",
    r"\b(every|each|two|this) starts? of (a|the|one) (run|job)\b": "attempt",
    r"\bnorm groups?\b": "ghost batches",
    r"\bwhat learns\b|\blearns? at (its|this)\b": "the trainable part, is trained",
    r"\b(its|own|of|the|'s) draws\b": "random numbers",
    r"\b(object|row|operation|kernels?|bytes|images) an? (line|image|minute|epoch|step)\b": "per line, per image",
    r"\b(un)?sureness\b|\bthe surest\b|\bunsure\b": "confidence",
    r"\bguess(es|ing)?\b": "predictions",
    r"\bis no (run|folder|file|picture|page)\b": "is not a run directory, file, image or page",
    r"\bnot asked for\b|\bis asked to\b|\bwere asked for\b": "requested",
    r"\bwhat (is|was) scored\b|\bscores it\b|\b(a|every|each|before|between|last|no) scores?\b": "evaluation",
    r"\b(in|of|by) itself and end\b|, and end\b": "then exit",
    r"\btakes it up\b|\btakes one up\b|\bcomes again\b|\bcome again\b": "resumes, restarts",
    r"\boptimis(e|er|ers|ed|ing|ation)\b": "optimizer, optimize",
    r"\b(un)?normalis(e|es|ed|ing|ation)\b": "normalize",
    r"\bvectoris(e|ed)\b|\binitialis|\bsummaris|\bsynchronis|\bserialis": "-ize",
    r"\bcolou?red pictures\b|\bcolours?\b|\bgrey\b|\bbehaviour\b|\blicence\b": "American spelling",
    r"\bcentre[sd]?\b": "center",
}

# Names that earlier versions had. Case matters.
NAMES = {
    r"\b(Local)?Mistake\b": "UserError, NodeError",
    r"\bRunFolder\b|\brun_folder\b(?!\.py)": "RunDir, run_dir",
    r"\b(norm_batch|group_norms|refresh_norms|estimate_norms)\b": "ghost_batch_size, apply_ghost_batchnorm, precise_bn",
    r"\b(Learner|Tally|InputFormat|KeyedDropout|LabelledImages)\b": "TrainState, MetricAccumulator, Preprocess",
    r"--(fresh|fetch)\b": "--restart, --download-only",
    r"--extend\b(?!-epochs)": "--extend-epochs",
    r"--profile\b(?!-steps)": "--profile-steps",
    r"eval\.py [^\n`]*--check\b": "--verify-export",
    r"\b(starts|owner)\.json\b": "attempts.json, lease.json",
    r"python -m resnet_cifar\.\w+": "resnet-cifar COMMAND",
    r"\bdata\.(stored_size|draws|plan)\b|\bhead\.widths\b|\btrack\.to\b|\bcheckpoint\.keep\b": "the field's new name",
    r"\b(training\.(loop|tally|world|watch|beforehand|label|score)|reporting\.ink)\b": "the module's new name",
}

# Files in which a match is deliberate.
EXCEPTIONS = {
    "tests/unit/test_language.py": "the patterns themselves",
    "resnet_cifar/config/errors.py": "RENAMED names the new field for an old one",
    "tests/unit/test_run_dir.py": "runs of earlier versions are refused",
    "resnet_cifar/checkpoints/run_dir.py": "runs of earlier versions are refused",
    "tests/unit/test_cli.py": "tests RENAMED",
}


def text_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.splitlines() if name.endswith(ENDINGS) and name not in EXCEPTIONS]
    return [name for name in files if (ROOT / name).is_file()]


def matches(patterns: dict[str, str], flags: int = 0) -> list[str]:
    compiled = [(re.compile(pattern, flags), instead) for pattern, instead in patterns.items()]
    found = []
    for name in text_files():
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1):
            for pattern, instead in compiled:
                if match := pattern.search(line):
                    found.append(f"{name}:{number}: {match[0]!r}: write {instead}")
    return found


def test_no_phrase_of_the_old_dialect_is_left() -> None:
    found = matches(PHRASES, re.IGNORECASE)
    assert not found, "\n".join(found)


def test_no_old_name_is_left() -> None:
    found = matches(NAMES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", EXCEPTIONS)
def test_every_exception_exists(file: str) -> None:
    assert (ROOT / file).is_file()
