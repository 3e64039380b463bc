"""krasis beside llama.cpp, ik_llama.cpp and transformers: same machine, shapes and bits, in turn and repeated.

python -m bench.peers setup --work FOLDER     install the peers, make the model in every form (19 GB)
python -m bench.peers run --work FOLDER       measure
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.measure import machine
from bench.peers import compare, install, model
from krasis.native.cores import physical_cores


def setup(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    install.install(options.work, options.wheels)
    files, jobs = model.Files(options.work), options.threads
    forms = {files.pack(bits, group): (bits, group) for bits in compare.TYPES for group in compare.GROUPS}
    ggufs = {files.gguf(kind): kind for kind in compare.TYPES.values()}
    if not install.has(install.python(options.work), "gguf"):
        print("GGUF files are not made: the package gguf is not installed")
        ggufs = {}
    if not options.drop_checkpoint or not all(path.exists() for path in (*forms, *ggufs)):
        model.make(files.checkpoint, model.write_checkpoint)
    for pack, (bits, group) in forms.items():
        model.make(pack, lambda path, b=bits, g=group: model.write_pack(files.checkpoint, path, b, g, jobs))
    for gguf, kind in ggufs.items():
        model.make(gguf, lambda path, kind=kind: _write_gguf(options, files.checkpoint, path, kind))
    if options.drop_checkpoint:
        shutil.rmtree(files.checkpoint, ignore_errors=True)


def _write_gguf(options: argparse.Namespace, checkpoint: Path, path: Path, kind: str) -> None:
    python = install.python(options.work)
    command = [python, "-m", "bench.peers.gguf_file", checkpoint, path, kind, "--jobs", str(options.threads)]
    subprocess.run(command, cwd=compare.ROOT, check=True)


def run(options: argparse.Namespace) -> None:
    found = []
    for system in compare.systems(options.work):
        if not any(word in system.name for word in options.only):
            continue
        if why := system.missing():
            print(f"skipped: {system.name}: {why}", file=sys.stderr)
        else:
            found.append(system)
    if not found:
        sys.exit(f"nothing to run in {options.work}: run setup, or choose others by --only")
    about = machine(options.work)
    rounds = 2 if options.quick else options.rounds
    report = about | compare.compare(found, rounds, options.threads, options.patience)
    print(json.dumps(report) if options.json else f"{about['cpu']}, load {about['load']:.1f}\n{compare.table(report)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="setup | run")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=lambda word: Path(word).resolve(), required=True, help="folder of all files")
    common.add_argument("--threads", type=int, default=physical_cores(), help="default: one a physical core")
    one = commands.add_parser("setup", parents=[common], help="install the peers, make the model")
    one.add_argument("--wheels", type=Path, help="folder of wheels and sources, instead of the network")
    one.add_argument("--drop-checkpoint", action="store_true", help="keep no 7 GB of bf16; transformers can't run then")
    one.set_defaults(act=setup)
    other = commands.add_parser("run", parents=[common], help="measure what is set up")
    other.add_argument("--only", nargs="+", metavar="TEXT", default=[""], help="systems whose names hold one of these")
    other.add_argument("--rounds", type=int, default=5)
    other.add_argument("--quick", action="store_true", help="2 rounds")
    other.add_argument("--patience", type=float, default=0, metavar="S", help="repeat disturbed runs so long")
    other.add_argument("--json", action="store_true")
    other.set_defaults(act=run)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
