"""The quickstart notebook, as it is committed, behind a real kernel; and train and show where no notebook is."""

from __future__ import annotations

import base64
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from resnet_cifar.data.sources import synthetic

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.ipynb"
PAGE = '<!doctype html><title>the report</title><p class="a">it\'s there</p><script>1 && 2</script>'
TINY = {"data.limit": 100, "data.image_size": 32, "batch_size": 48, "micro_batch": 8, "model.name": "test_resnet"}
TINY |= {"track.trackers": "none", "phases": [{"epochs": 1}, {"epochs": 1}]}


def outputs(cell: Any) -> list[str]:
    """What the cell shows, HTML where there is some; libraries' warnings are not looked at."""
    shown = []
    for output in cell.outputs:
        if output.get("name") == "stderr":
            continue
        data = output.get("data", {})
        shown.append(data.get("text/html") or data.get("text/plain") or output.get("text", ""))
    return shown


def execute(notebook: Any, folder: Path) -> None:
    NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def notebook_of(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The committed cells after they ran in an empty folder, and the folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    execute(notebook, folder)
    return notebook, folder


def test_the_quickstart_is_committed_without_outputs() -> None:
    notebook = json.loads(QUICKSTART.read_text())
    nbformat.validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert not re.search(r"/(home|root|work|Users|tmp)/", QUICKSTART.read_text())


def test_the_quickstart_trains_with_curves_and_says_its_accuracy(executed: tuple[Any, Path]) -> None:
    notebook, folder = executed
    cell = next(cell for cell in notebook.cells if cell.id == "train")
    panel, printed = outputs(cell)
    assert "runs/quickstart" in panel and "finished" in panel and 'aria-valuenow="100.0"' in panel
    assert re.search(r"step (\d+) of \1<", panel) and "images/s" in panel and "validation accuracy" in panel
    curves = base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]+)", panel)[1]).decode()
    assert all(f">{word}<" in curves for word in ("loss", "accuracy", "training", "validation", "epoch"))
    result = json.loads((folder / "runs" / "quickstart" / "result.json").read_text())
    assert printed == f"test accuracy {result['test/accuracy']:.4f}\n"
    assert result["test/accuracy"] > 0.8


def test_the_quickstart_shows_the_report_in_a_frame_of_its_own(executed: tuple[Any, Path]) -> None:
    notebook, folder = executed
    (shown,) = outputs(next(cell for cell in notebook.cells if cell.id == "show"))
    page = (folder / "runs" / "quickstart" / "report" / "index.html").read_text()
    assert html.unescape(re.search(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts"', shown)[1]) == page


def test_the_quickstart_labels_a_picture(executed: tuple[Any, Path]) -> None:
    cell = next(cell for cell in executed[0].cells if cell.id == "label")
    printed, _ = outputs(cell)
    label, share = re.fullmatch(r"(.+) \((.+)%\)\n", printed).groups()
    assert label == synthetic.CLASS_NAMES[synthetic.draw("test")[1][5]] and float(share) > 20
    assert "image/png" in cell.outputs[-1]["data"]


def test_a_mistake_in_a_notebook_is_one_sentence(tmp_path: Path) -> None:
    notebook = notebook_of("import resnet_cifar\nresnet_cifar.train('scrath')")
    with pytest.raises(CellExecutionError):
        execute(notebook, tmp_path)
    (error,) = notebook.cells[0].outputs
    assert error["ename"] == "UserError"
    assert error["traceback"][0].startswith("error: there is no recipe 'scrath'; did you mean scratch? (shipped: debug")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proof_only
def test_a_script_trains_once_and_sees_what_train_py_prints(tmp_path: Path) -> None:
    script = f"""
import resnet_cifar
from pathlib import Path

settings = {TINY!r}
run = resnet_cifar.train("debug", run=Path("RUN"), **settings)
print("--", repr(run), run.result["test/accuracy"] >= 0)
files = {{path: path.stat().st_mtime_ns for path in Path("RUN").rglob("*")}}
assert resnet_cifar.train("debug", run="RUN", **settings) == run
assert files == {{path: path.stat().st_mtime_ns for path in Path("RUN").rglob("*")}}
page = Path("RUN/report/index.html")
page.parent.mkdir(exist_ok=True)
page.write_text({PAGE!r})
resnet_cifar.show(run)
assert page.read_text() == {PAGE!r}, "it is newer than all that it is made from"
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "phase 1 " in done.stdout and "validation accuracy" in done.stdout, "what train.py prints is seen"
    (first,) = re.findall(r"^-- (.*)$", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"Run\('RUN'\): finished, step 4 of 4, val/accuracy 0\.\d+, test/accuracy 0\.\d+ True", first)
    assert done.stdout.splitlines()[-2:] == [first.removesuffix(" True"), "RUN/report/index.html"]
