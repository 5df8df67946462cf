"""`resnet-cifar serve` as a process of its own: it answers what `predict` prints, whatever is sent to it."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from serving import CLASSES, TIMEOUT, Serving, write_model

from resnet_cifar.cli import predict, serve
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
onnx = pytest.importorskip("onnx")

MEBIBYTES, MEGAPIXELS, IMAGES = 2, 1, 8  # limits of the service below


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Serving]:
    """The ONNX model with low limits. No test makes it fail or write to standard error."""
    limits = {"--max-mebibytes": MEBIBYTES, "--max-megapixels": MEGAPIXELS, "--max-images": IMAGES}
    with Serving(model / "export", *(str(word) for pair in limits.items() for word in pair)) as serving:
        yield serving
        assert serving.errors() == ""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several formats, modes and sizes, one turned by EXIF, one with transparency, one with 16 bits."""
    folder, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)

    def smooth(*shape: int) -> np.ndarray:
        coarse = Image.fromarray(draw.integers(0, 256, (6, 5, shape[2]), dtype=np.uint8))
        return np.asarray(coarse.resize(shape[1::-1], Image.Resampling.BICUBIC))

    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(smooth(60, 90, 3)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(smooth(301, 200, 4)).save(folder / "transparent.png")
    Image.fromarray(smooth(40, 48, 3)).save(folder / "as stored.png")
    Image.fromarray(smooth(5, 300, 3)).save(folder / "strip.webp", lossless=True)
    Image.fromarray(smooth(33, 20, 3)).convert("L").save(folder / "gray.bmp")
    Image.fromarray(smooth(50, 50, 3)[..., 0].astype(np.uint16) * 257).save(folder / "deep.tiff")
    frames = [Image.fromarray(smooth(64, 64, 3)) for _ in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    return sorted(folder.iterdir())


def form(*files: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (file.name, file.read_bytes())) for file in files]


def png(width: int, height: int, pixels: int, text: int = 0) -> bytes:
    """A PNG of 1 bit per pixel, with `pixels` zeros as its compressed pixels and `text` as a comment."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    comment = b"Comment\0\0" + zlib.compress(bytes(text), 1)
    chunks = {b"IHDR": header, b"zTXt": comment, b"IDAT": zlib.compress(bytes(pixels), 1), b"IEND": b""}
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in parts)


@pytest.fixture(scope="module")
def expected(model: Path, photographs: list[Path]) -> list[dict[str, Any]]:
    """What `resnet-cifar predict` prints."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("sys.stdout", stream)
        predict.main([str(model / "model"), *map(str, photographs), "--json"])
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len({row["label"] for row in rows}) > 1 and all("error" not in row for row in rows)
    return [{**row, "file": Path(row["file"]).name} for row in rows]


def check_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]], rounding: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["file"], ours["label"]) == (theirs["file"], theirs["label"])
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=rounding)
        assert ours["probability"] == ours["probabilities"][ours["label"]]


def test_torch_and_onnx_answer_what_predict_prints(
    model: Path, served: Serving, photographs: list[Path], expected: list[dict[str, Any]]
) -> None:
    with Serving(model / "model") as torch_served:
        assert "backend      torch" in torch_served.said[1]
        check_equal(torch_served.post(files=form(*photographs)).json()["images"], expected, 2e-6)
        health = requests.get(f"{torch_served.url}/health", timeout=TIMEOUT).json()
    assert health.items() >= {"status": "ok", "model": "test_resnet", "classes": list(CLASSES)}.items()
    assert "backend      onnxruntime" in served.said[1]
    check_equal(served.post(files=form(*photographs)).json()["images"], expected, 1e-5)
    facts = requests.get(f"{served.url}/health", timeout=TIMEOUT).json()
    assert facts["backend"].startswith("onnxruntime") and health["backend"].startswith("torch")
    assert {**facts, "backend": "", "weights": ""} == {**health, "backend": "", "weights": ""}
    assert facts["fingerprint"] == "f00d"
    maps = Path(f"/proc/{served.process.pid}/maps")
    assert not maps.exists() or "libtorch" not in maps.read_text(), "onnxruntime does not need torch"


def test_a_lone_image_is_a_body(served: Serving, photographs: list[Path], expected: list[dict[str, Any]]) -> None:
    for file, row in zip(photographs, expected, strict=True):
        answer = served.post(data=file.read_bytes(), headers={"Content-Type": "image/whatever"})
        check_equal(answer.json()["images"], [{**row, "file": "image"}], 1e-5)


def test_unreadable_images_among_others_are_named(served: Serving, photographs: list[Path]) -> None:
    files = [*form(photographs[0]), ("images", ("<b>.txt", b"hello")), *form(photographs[1])]
    answer = served.post(files=files)
    first, broken, last = answer.json()["images"]
    assert answer.status_code == 200 and {first["label"], last["label"]} <= set(CLASSES)
    assert broken["file"] == "<b>.txt" and broken["error"].startswith("it cannot be read as an image: send one of JPEG")


JPEG = io.BytesIO()
Image.effect_noise((90, 90), 50).save(JPEG, "JPEG")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n"
LARGE = MEBIBYTES * 2**20 + 1


def multipart(text: bytes, kind: str = "multipart/form-data; boundary=x") -> dict[str, Any]:
    return {"data": text.replace(b"\n", b"\r\n"), "headers": {"Content-Type": kind}}


def one(name: str, content: bytes) -> dict[str, Any]:
    return {"files": [("images", (name, content))]}


PART = b'--x\nContent-Disposition: form-data; name="images"; filename="\\ud800"\n\nhello\n--x--\n'
HOSTILE = {
    "nothing": (415, "Content-Type '' is not that of an image or form", {}),
    "an empty body": (400, "contains no image", {"data": b"", "headers": {"Content-Type": "image/png"}}),
    "an empty file": (400, "contains no image", one("a.png", b"")),
    "an empty form": (400, "contains no image", multipart(b"--x--\n")),
    "a text file": (422, "a.png: it cannot be read as an image: send one", one("a.png", b"hello")),
    "two text files": (422, "none of 2 images can be classified (a:", {"files": [("images", ("a", b"b"))] * 2}),
    "an SVG file": (422, "it cannot be read", {"data": SVG, "headers": {"Content-Type": "image/svg+xml"}}),
    "a program": (422, "it cannot be read", one("a.eps", EPS)),
    "half a JPEG file": (422, "it cannot be read", one("a.jpg", JPEG.getvalue()[:1500])),
    "a PNG file without pixels": (422, "it cannot be read", one("a.png", png(64, 64, 0))),
    "a bomb": (422, "20000 x 20000 pixels: send an image of up to 1", one("a.png", png(20_000, 20_000, 20_000 * 2501))),
    "a larger bomb": (422, "it has over 536,870,912 pixels: send", one("a.png", png(2**31 - 1, 2**31 - 1, 9))),
    "a bomb of text": (422, "it cannot be read", one("a.png", png(8, 8, 16, 10**8))),
    "a path as a name": (422, "../../etc/passwd: it cannot", one("../../etc/passwd", b"root")),
    "a text body": (415, "Content-Type 'text/plain' is not", {"data": b"a", "headers": {"Content-Type": "text/plain"}}),
    "a JSON body": (415, "Content-Type 'application/json' is not", {"json": {"images": ["a"]}}),
    "a body that curl calls a form": (415, "-urlencoded' is not", {"data": {"images": "a"}}),
    "another field": (400, "the form field 'picture' is not read", {"files": [("picture", ("a.png", b"a"))]}),
    "text as an image": (400, "the form field 'images' holds no file", {"files": [("images", (None, "a"))]}),
    "too many images": (400, "send up to 8 images", {"files": [("images", ("a.png", b"a"))] * 9}),
    "thousands of fields": (400, "the form cannot be read", {"files": [(f"a{n}", (None, "b")) for n in range(5000)]}),
    "a long field": (400, "the form cannot be read", {"files": [("a", (None, "b" * 10_000))]}),
    "a form without a boundary": (400, "the form cannot be read", multipart(PART, "multipart/form-data")),
    "a form of garbage": (400, "the form cannot be read", multipart(b"garbage")),
    "a form that breaks off": (400, "no image", multipart(PART[:30])),
    "a charset of no text": (422, "cannot be read", multipart(PART, "multipart/form-data; boundary=x; charset=zip")),
    "a charset of nothing": (400, "form cannot", multipart(PART, "multipart/form-data; boundary=x; charset=undefined")),
    "half a character": (422, "?: it", multipart(PART, "multipart/form-data; boundary=x; charset=unicode_escape")),
    "a large image": (413, "exceeds 2 MiB", {"data": bytes(LARGE), "headers": {"Content-Type": "image/png"}}),
    "a large form": (413, "exceeds 2 MiB", one("a.png", bytes(LARGE))),
    "100 MB": (413, "exceeds 2 MiB", {"data": bytes(10**8), "headers": {"Content-Type": "image/png"}}),
    "100 MB in parts": (413, "exceeds 2 MiB", {"data": [bytes(10**6)] * 100, "headers": {"Content-Type": "image/png"}}),
}  # fmt: skip


def test_hostile_requests_get_one_sentence_and_little_memory(served: Serving, photographs: list[Path]) -> None:
    """The fixture asserts that nothing of it is logged."""
    assert served.post(files=form(*photographs)).ok
    before = served.peak_memory()
    for name, (status, sentence, words) in HOSTILE.items():
        data = words.get("data")
        sent = {**words, "data": iter(data)} if isinstance(data, list) else words  # without Content-Length
        answer = served.post(**sent)
        assert (answer.status_code, set(answer.json()) - {"images"}) == (status, {"error"}), (name, answer.text)
        error = answer.json()["error"]
        assert sentence in error and "\n" not in error and not error.endswith("."), (name, error)
    assert served.post(files=form(*photographs)).ok
    assert served.peak_memory() - before < 30e6, "the bomb alone would have 400 MB"


def test_other_addresses_and_methods_are_answered_in_a_sentence(served: Serving) -> None:
    found = [
        requests.request(method, served.url + path, timeout=TIMEOUT)
        for method, path in [("GET", "/../../etc/passwd"), ("GET", "/docs"), ("GET", "/predict"), ("PUT", "/health")]
    ]
    assert [answer.status_code for answer in found] == [404, 404, 405, 405]
    assert all("POST images to /predict" in answer.json()["error"] for answer in found)
    assert requests.head(f"{served.url}/", timeout=TIMEOUT).status_code == 200
    schema = requests.get(f"{served.url}/openapi.json", timeout=TIMEOUT).json()
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]


def test_what_is_not_http_is_refused(served: Serving) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000):
        connection = served.connect()
        connection.connect()
        connection.sock.sendall(garbage + b"\r\n\r\n")
        assert connection.sock.recv(12) == b"HTTP/1.1 400"
        connection.close()


def test_the_page_runs_no_script_but_its_own_and_other_sites_read_nothing(served: Serving) -> None:
    page = requests.get(f"{served.url}/", headers={"Origin": "http://elsewhere"}, timeout=TIMEOUT)
    assert "&lt;i&gt;cat&lt;/i&gt;" in page.text and "<i>cat" not in page.text
    assert "script-src 'sha256-" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert not any(name.lower().startswith("access-control") for name in page.headers)
    assert "server" not in page.headers


def test_eight_clients_at_once_get_the_answers_of_one(served: Serving, photographs: list[Path], expected: Any) -> None:
    """A prediction does not depend on what it shares its batch with, and everything is counted."""
    jobs = [number % len(photographs) for number in range(60)]
    names = ('images_total{outcome="classified"}', "batch_images_sum", "batch_images_count", "predict_seconds_count")
    before = Counter({name: served.metric(name) for name in names})
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: served.post(files=form(photographs[number])), jobs))
    assert {answer.status_code for answer in answers} == {200}
    check_equal([answer.json()["images"][0] for answer in answers], [expected[number] for number in jobs], 1e-5)
    after = Counter({name: served.metric(name) for name in names}) - before
    assert after[names[0]] == after[names[1]] == after[names[3]] == 60
    assert 0 < after[names[2]] <= 60
    assert served.metric("queued_images") == served.metric("requests_in_progress") == 0


def test_a_full_service_says_when_to_return_and_a_slow_client_is_not_waited_for(
    model: Path, photographs: list[Path]
) -> None:
    """--max-requests 1, of which one is held by a client that sends half of an image, and later the rest or nothing."""
    image = photographs[0].read_bytes()
    with Serving(model / "export", "--max-requests", "1", "--timeout", "2") as serving:
        slow = serving.half_a_request(image)
        refused = serving.post(files=form(photographs[0]))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"] == "too many requests are in progress (limit: 1): retry in a second"
        answer = slow.getresponse()  # without the other half
        assert answer.status == 408
        assert json.loads(answer.read())["error"] == "the request took over 2 seconds: send less at a time"
        serving.half_a_request(image).close()
        while serving.metric("requests_in_progress"):
            pass
        assert serving.post(files=form(photographs[0])).status_code == 200
        assert serving.metric('requests_total{path="/predict",status="499"}') == 1
        assert serving.errors() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_requests_in_progress(model: Path, photographs: list[Path], number: int) -> None:
    image = photographs[0].read_bytes()
    with Serving(model / "export" / "model.onnx") as serving:
        pending = serving.half_a_request(image)
        serving.process.send_signal(number)
        with pytest.raises(ConnectionError):
            while True:  # until it accepts no more
                serving.connect().connect()
        pending.send(image[len(image) // 2 :])
        answer = pending.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["images"][0]["label"] in CLASSES
        assert serving.process.wait(TIMEOUT) == 0
        assert serving.process.stdout.read() == "ended: all requests are answered\n"
        assert serving.errors() == ""


def test_a_second_signal_cuts_requests_off_and_they_are_told_so(model: Path, photographs: list[Path]) -> None:
    with Serving(model / "export" / "model.onnx") as serving:
        pending = serving.half_a_request(photographs[0].read_bytes())
        serving.process.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionError):
            while True:  # until it accepts no more
                serving.connect().connect()
        serving.process.send_signal(signal.SIGINT)
        answer = pending.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert json.loads(answer.read()) == {"error": "the service is ending: retry in a second"}
        assert serving.process.wait(TIMEOUT) == 0
        assert serving.process.stdout.read() == "ended: 1 request was cut off\n"
        assert serving.errors() == ""


def test_it_warns_where_others_can_reach_it(model: Path) -> None:
    with Serving(model / "export", "--host", "0.0.0.0") as serving:
        assert any(line.startswith("warning: every machine that reaches this one") for line in serving.said)
        port = serving.url.rpartition(":")[2]
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT).json()["status"] == "ok"


def test_a_port_in_use_is_one_sentence(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"^--port {port} cannot be used on 127.0.0.1 \(Address already in use\): "
        ):
            serve.main([str(model / "export"), "--port", str(port)])


def test_an_export_of_other_weights_is_not_served_for_a_run(model: Path, tmp_path: Path) -> None:
    run, weights = tmp_path / "run", "checkpoints/step-00000009"
    shutil.copytree(model / "export", run / "export")
    write_recipe(read_recipe("debug"), run / "recipe.yaml")
    (run / "result.json").write_text(json.dumps({"checkpoint": weights}))
    graph = onnx.load(run / "export" / "model.onnx")
    (entry,) = (entry for entry in graph.metadata_props if entry.key == "weights")
    for entry.value, is_current in (("checkpoints/step-00000007", False), (weights, True)):
        onnx.save(graph, run / "export" / "model.onnx")
        options, recipe = serve.parse_arguments([str(run), "--backend", "onnx"])
        assert recipe is None
        if is_current:
            assert serve._load(options, recipe)[0].name == weights
            continue
        with pytest.raises(UserError, match=r"has the weights of checkpoints/step-00000007, and .* has .*9: export it"):
            serve._load(options, recipe)


def test_an_onnx_model_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("garbage")
    with pytest.raises(UserError, match=r"model.onnx is not a model of resnet-cifar export, .*: export it again"):
        serve.main([str(tmp_path), "--port", "0"])


def test_it_is_one_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(serve, "check_launcher", lambda: None)
    with pytest.raises(UserError, match="serve is one process: run it without a launcher"):
        serve.main([str(model / "export")])
