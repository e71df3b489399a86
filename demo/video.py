"""Runs a model over videos through the service, and draws what it finds.

Starts a server of its own on the emulated device, with that model alone, and stops it at the end. Without a video and a
model it looks for faces in the clips of the test data, where those lie beside the checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from aclserve_client.video_config import parameters_text
from demo.run import ROOT, DemoError, server

DATA = ROOT.parent / "shared" / "data"
CLIPS = ("asl_book.mkv", "car-detection.mp4")
FACE_MODEL = "ultraface_rfb_320"
FACE_FACTS = {"colour": "RGB", "mean": 127, "scale": "1/128", "decoder": "ultraface", "labels": "face"}
"""What the face detector wants of a frame: its authors subtract 127 and divide by 128."""

EXPLANATION = """\
Say what to run:

    make demo-video VIDEO=clip.mp4 MODEL=models/NAME

VIDEO is a file, /dev/video0 or an RTSP address, or several of them in quotes. MODEL is the folder of a model
(NAME/1/model.onnx, and NAME/config.pbtxt with the parameters `video.*` that say what it wants of a frame), or an ONNX
file with a config.pbtxt beside it. client/aclserve_client/video_config.py lists the parameters."""


def sources(text: str) -> list[str]:
    """The videos to run over: as given (one name, or several as a shell would write them), otherwise the clips."""
    if text:
        return [text] if Path(text).exists() else shlex.split(text)
    clips = [DATA / "media" / name for name in CLIPS]
    return [str(clip) for clip in clips] if all(clip.is_file() for clip in clips) else []


def make_repository(root: Path, model: str) -> str | None:
    """Puts the model into an empty repository and returns its name; None where none is given and none is known."""
    if model:
        return _copy_model(root, Path(model))
    file = DATA / "models" / FACE_MODEL / "model.onnx"
    if not file.is_file():
        return None
    put(root / FACE_MODEL, file, f'name: "{FACE_MODEL}"\n{parameters_text(FACE_FACTS)}')
    return FACE_MODEL


def _copy_model(root: Path, model: Path) -> str:
    if model.is_dir():
        name = model.resolve().name
        shutil.copytree(model, root / name)
        return name
    if not model.is_file():
        raise DemoError(f"there is no model {model}")
    config = model.with_name("config.pbtxt")
    put(root / model.stem, model, config.read_text(encoding="utf-8") if config.is_file() else "")
    return model.stem


def put(folder: Path, file: Path, config: str) -> None:
    """One model of a repository."""
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(file, folder / "1" / "model.onnx")
    if config:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")


async def run(arguments: argparse.Namespace, console: Console) -> int:
    found = sources(arguments.video)
    with tempfile.TemporaryDirectory(prefix="aclserve-demo-") as folder:
        model = make_repository(Path(folder), arguments.model)
        if not found or model is None:
            console.print(EXPLANATION, markup=False, soft_wrap=True)
            return 2
        out = arguments.out
        command = [str(Path(sys.executable).parent / "aclctl"), "video", *found, "--model", model]
        command += ["--preset", arguments.preset] if arguments.preset else []
        command += ["--limit", str(arguments.limit)] if arguments.limit else []
        command += ["--out-video", str(out / "video.mp4"), "--lines", str(out / "video.jsonl")]
        command += ["--preview", str(out / "video-preview.png"), "--summary", str(out / "video-summary.png")]
        async with server(console, Path(folder)) as address:
            console.print(f"running     {shlex.join(['aclctl', *command[1:]])}", markup=False, soft_wrap=True)
            process = await asyncio.create_subprocess_exec(*command, "--address", address)
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--video", default="", help="a file, device or address, or several in one text")
    parser.add_argument("--model", default="", help="a model's folder, or an ONNX file")
    parser.add_argument("--preset", choices=("file", "live"), help="as of aclctl video")
    parser.add_argument("--limit", type=int, help="most frames of each source")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for the pictures and videos")
    console = Console()
    try:
        return asyncio.run(run(parser.parse_args(), console))
    except (DemoError, OSError, TimeoutError) as error:
        console.print(f"failed      {error}", style="red", markup=False, soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
