"""Commands on a board over a real SSH server, with a Python there that has no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import krl_deploy
from _helpers.bundles import LABELS, TinyNet, write_bundle
from _helpers.image_nets import write_generator
from _helpers.required import real_rtx
from _helpers.sshd import breaking_python, know, make_key, script
from krl_deploy.boards import ssh
from krl_deploy.boards.registry import BoardError
from krl_deploy.cli import main
from krl_runtime import Bundle, DataError, Preprocessing, UsageError
from krl_runtime.device.profiles import Profile, machine_facts

pytestmark = pytest.mark.xdist_group("sshd")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def home(server) -> Path:
    return server.folder / "home" / ".krl-board"


def test_add_says_what_is_there_and_remove_forgets_it(server, slim, board, tmp_path, capsys):
    board("other")
    options = ["--port", str(server.port), "--identity", str(server.identity), "--ssh-config", str(server.config)]
    assert main(["board", "add", "jetson", server.host, *options, "--python", str(slim), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["python"], found["machine"]) == (sys.version.split()[0], os.uname().machine)
    assert found["modules"]["numpy"] == np.__version__
    assert found["modules"]["onnx"] is None
    assert 0 < found["free_bytes"] <= shutil.disk_usage(server.folder).total
    assert (found["jetpack"], found["jetson_linux"]) == ("", "")
    assert main(["board", "list"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("jetson") < shown.index("other")
    assert main(["board", "remove", "jetson"]) == 0
    assert [item["name"] for item in krl_deploy.board_list().details["boards"]] == ["other"]
    assert main(["board", "remove", "jetson"]) == 2


def test_evaluate_gives_the_numbers_of_the_board_and_the_second_time_copies_nothing(
    server, board, photos, tmp_path, monkeypatch
):
    board()
    bundle = write_bundle(tmp_path / "flowers.krl", variants=("fp32", "int8"))
    before = tree(bundle.path)
    monkeypatch.chdir(tmp_path)
    done = krl_deploy.on("jetson", ["evaluate", "flowers.krl", "photos", "--json"])
    assert done.exit_code == 0
    assert done.copied > sum(map(len, before.values()))
    found = json.loads(done.output)
    net = TinyNet.random(Preprocessing(12, 10), len(LABELS))
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in sorted(photos.rglob("*.png"))])
    truth = np.array([LABELS.index(file.parent.name) for file in sorted(photos.rglob("*.png"))])
    correct = int((net.logits(pixels).argmax(1) == truth).sum())
    measured = [row for row in found["rows"] if row["state"] == "measured"]
    assert {row["variant"] for row in measured} == {"fp32", "int8"}
    assert [row["metrics"]["correct"] for row in measured if row["variant"] == "fp32"] == [correct]
    kept = tmp_path / "flowers.krl.boards" / "jetson" / "flowers.krl.device" / "evaluations.json"
    assert done.files == (kept,)
    assert json.loads(kept.read_bytes())["evaluations"]
    assert tree(bundle.path) == before  # the bundle here stays as it is
    assert not (tmp_path / "flowers.krl.device").exists()
    again = krl_deploy.on("jetson", ["evaluate", str(bundle.path), str(photos), "--json"])
    assert (again.exit_code, again.copied) == (0, 0)
    assert not list((home(server) / "jobs").iterdir())


def test_a_list_is_measured_on_the_board_as_here(board, photos, tmp_path, monkeypatch):
    board()
    bundle = write_bundle(tmp_path / "flowers.krl")
    files = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))][:5]
    (photos / "some.csv").write_text("image,label\n" + "".join(f"{file},{file.split('/')[0]}\n" for file in files))
    done = krl_deploy.on(
        "jetson", ["evaluate", str(bundle.path), str(photos / "some.csv"), "--backend", "cpu", "--json"]
    )
    assert done.exit_code == 0
    pixels = np.stack([np.asarray(Image.open(photos / file)).transpose(2, 0, 1) for file in files])
    right = TinyNet.random(Preprocessing(12, 10), len(LABELS)).logits(pixels).argmax(1) == [
        LABELS.index(file.split("/")[0]) for file in files
    ]
    (row,) = json.loads(done.output)["rows"]
    assert (row["metrics"]["count"], row["metrics"]["correct"]) == (5, int(right.sum()))


def test_names_are_never_words_of_a_shell(server, board, photos, tmp_path, monkeypatch, capfd):
    board()
    monkeypatch.chdir(tmp_path)
    names = ["-x", "a b", "q'\"", "$(touch pwned)", "; touch pwned;", "new\nline", "`touch pwned`", "*", "ä&|<>"]
    image = next(photos.rglob("*.png")).read_bytes()
    for name in names:
        Path(f"{name}.png").write_bytes(image)
    write_bundle(Path("-; touch pwned; $HOME\n.krl").absolute())
    given = ["./-x.png", *(f"{name}.png" for name in names[1:])]
    code = main(["on", "jetson", "classify", "./-; touch pwned; $HOME\n.krl", *given, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert [Path(item["file"]).name for item in found["results"]] == [Path(name).name for name in given]
    assert not [path for folder in (tmp_path, home(server).parent) for path in folder.rglob("pwned*")]


def test_exit_codes_and_messages_are_those_of_the_command(board, tmp_path, monkeypatch, capfd):
    board()
    monkeypatch.chdir(tmp_path)
    bundle = write_bundle(tmp_path / "flowers.krl", golden=0)
    assert main(["on", "jetson", "selftest", str(bundle.path)]) == 2
    assert "no golden inputs" in capfd.readouterr().err
    assert main(["on", "jetson", "info", "/no/such.krl"]) == 2
    assert "krl-runtime: error: bundle /no/such.krl does not exist" in capfd.readouterr().err
    assert main(["on", "jetson", "check", "flowers.krl", "--target", "rtx"]) == 2
    error = capfd.readouterr().err
    assert "tyro is missing; onnx is missing" in error
    assert "--install" in error


def test_results_of_o_come_to_their_place_and_replace_nothing(board, tmp_path, monkeypatch, capfd):
    board()
    bundle = write_generator(tmp_path / "gan.krl").path
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    arguments = ["on", "jetson", "generate", str(bundle), "-n", "3", "-o", "../made"]
    assert main(arguments) == 0
    made = tree(tmp_path / "made")
    assert sorted(made) == ["0000.png", "0001.png", "0002.png", "grid.png"]
    capfd.readouterr()
    assert main(arguments) == 2
    assert "exists already" in capfd.readouterr().err
    assert main([*arguments, "--seed", "4", "--overwrite"]) == 0
    assert tree(tmp_path / "made") != made


def test_a_profile_grows_on_the_board_and_comes_back(board, tmp_path, monkeypatch, capfd):
    board()
    for name in ("a", "b"):
        write_bundle(tmp_path / f"{name}.krl")
    monkeypatch.chdir(tmp_path)
    options = ["--warmup", "0", "--iterations", "2", "--threads", "1"]
    done = krl_deploy.on("jetson", ["bench", "a.krl", "--profile", "profiles/orin.json", *options])
    assert (done.exit_code, done.files) == (0, (Path("profiles/orin.json"),))
    assert krl_deploy.on("jetson", ["bench", "b.krl", "--profile=profiles/orin.json", *options]).exit_code == 0
    recorded = Path("profiles/orin.json").read_bytes()
    profile = Profile.read(Path("profiles/orin.json"))
    assert [entry.bundle for entry in profile.entries] == ["a", "b"]
    assert profile.name == os.uname().nodename  # the board of this test is this machine
    assert not profile.differences(machine_facts(1))
    capfd.readouterr()
    assert main(["on", "jetson", "bench", "a.krl", "--profile", "profiles/orin.json", "--threads", "2"]) == 2
    assert "threads 1 was recorded, 2 is here" in capfd.readouterr().err
    assert Path("profiles/orin.json").read_bytes() == recorded
    assert sorted(path.name for path in tmp_path.iterdir() if "config" not in path.name) == [
        "a.krl",
        "b.krl",
        "profiles",
    ]


def test_a_broken_copy_goes_on_where_it_stopped(server, slim, board, tmp_path, caplog):
    python = breaking_python(tmp_path / "python", slim, after=3_000_000)
    board(python=str(python))
    extra = np.random.default_rng(0).bytes(8_000_000)
    bundle = write_bundle(tmp_path / "large.krl", contents={"extra.bin": extra})
    whole = sum(map(len, tree(bundle.path).values()))
    done = krl_deploy.on("jetson", ["info", str(bundle.path)])
    assert done.exit_code == 0
    assert "trying again" in caplog.text
    assert not list((home(server) / "store").rglob("*.part"))
    # The broken connection adds no bytes: all that it brought was on the board, and the copy went on from there.
    assert whole - 3_000_000 <= done.copied < whole - 2_000_000


def test_a_connection_that_breaks_each_time_ends_with_exit_code_2(server, slim, board, tmp_path, capfd):
    board(python=str(breaking_python(tmp_path / "python", slim, after=2_000_000, times=99)))
    bundle = write_bundle(tmp_path / "large.krl", contents={"extra.bin": np.random.default_rng(1).bytes(20_000_000)})
    before = tree(bundle.path)
    assert main(["on", "jetson", "info", str(bundle.path)]) == 2
    error = capfd.readouterr().err
    assert "the connection to board jetson broke" in error
    assert "run the same command again; the copy goes on where it stopped" in error
    assert tree(bundle.path) == before
    parts = [path.stat().st_size for path in (home(server) / "store").rglob("*.part")]
    assert max(parts) > 2 * 1_500_000  # each of the four tries brought its part
    board()
    done = krl_deploy.on("jetson", ["info", str(bundle.path)])
    assert done.exit_code == 0
    assert done.copied <= 20_000_000 - max(parts) + 2_000_000


def test_host_keys_that_are_unknown_or_changed_are_refused(server, board, tmp_path, capfd):
    board()
    known = server.known_hosts.read_text()
    try:
        server.known_hosts.write_text("")
        assert main(["on", "jetson", "doctor"]) == 2
        error = capfd.readouterr().err
        assert "is not known yet, so nothing was sent; connect once with: ssh -p" in error
        know(server, make_key(tmp_path / "another"))
        assert main(["on", "jetson", "doctor"]) == 2
        error = capfd.readouterr().err
        assert "is not the one that is known, so nothing was sent" in error
        assert "ssh-keygen" in error
    finally:
        server.known_hosts.write_text(known)


def test_boards_that_cannot_be_used_say_why(server, board, tmp_path):
    with pytest.raises(BoardError, match=r"cannot be reached: .*refused; check it with: ssh -p 1 "):
        krl_deploy.board_add(name="off", host=server.host, port=1, ssh_config=server.config)
    other = make_key(tmp_path / "other_user")
    with pytest.raises(BoardError, match=r"refuses this user .*Permission denied"):
        krl_deploy.board_add(name="off", host=server.host, port=server.port, identity=other, ssh_config=server.config)
    board(python="/no/such/python")
    with pytest.raises(BoardError, match=r"has no /no/such/python .*--python PATH"):
        krl_deploy.on("jetson", ["doctor"])
    old = (
        "import sys; sys.version_info = (3, 8, 10); sys.version = '3.8.10'; sys.argv = sys.argv[1:]; exec(sys.argv[1])"
    )
    board(python=str(script(tmp_path / "old", f'shift; exec python3 -u -c "{old}" "$@"')), folder="old")
    with pytest.raises(BoardError, match=r"Python there is 3.8.10, and krl needs 3.10"):
        krl_deploy.on("jetson", ["doctor"])
    assert not [item for item in krl_deploy.board_list().details["boards"] if item["name"] == "off"]


def test_a_damaged_bundle_is_not_run(board, tmp_path):
    board()
    bundle = write_bundle(tmp_path / "flowers.krl", seed=9)
    file = bundle.path / "model.fp32.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"model.fp32.onnx changed while it was copied, or is not as its manifest"):
        krl_deploy.on("jetson", ["info", str(bundle.path)])


def test_deployment_on_the_board_changes_a_copy(board, deploying, tmp_path, monkeypatch):
    board(python=str(deploying), folder="deploying")
    monkeypatch.chdir(tmp_path)
    bundle = write_bundle(tmp_path / "flowers.krl", variants=("fp32", "int8"))
    before = tree(bundle.path)
    done = krl_deploy.on("jetson", ["fp16", "flowers.krl", "--accept-unmeasured", "--json"])
    assert done.exit_code == 0
    assert tree(bundle.path) == before
    changed = Bundle.open(tmp_path / "flowers.krl.boards" / "jetson" / "flowers.krl")
    changed.verify()
    assert "fp16" in changed.manifest.variants
    Path("options.yaml").write_text("slim: true\ntarget: onnxruntime-cpu\n")
    done = krl_deploy.on("jetson", ["package", "flowers.krl", "--config", "options.yaml", "-o", "thin.tar"])
    assert done.exit_code == 0
    shutil.unpack_archive("thin.tar", "unpacked", filter="data")
    assert sorted(Bundle.open("unpacked/flowers.krl").manifest.variants) == ["fp32"]  # the bundle of the desk ran
    with pytest.raises(UsageError, match="private key, which is not copied to a board"):
        krl_deploy.on("jetson", ["sign", "flowers.krl", "--key", "krl-key"])


def test_an_engine_stays_beside_the_copy_on_the_board_and_comes_back(server, board, deploying, tmp_path, monkeypatch):
    real_rtx()
    board(python=str(deploying), folder="deploying")
    monkeypatch.chdir(tmp_path)
    bundle = write_bundle(tmp_path / "flowers.krl")
    before = tree(bundle.path)
    build = ["build-engine", "flowers.krl", "--target", "rtx", "--precision", "fp32", "--json"]
    done = krl_deploy.on("jetson", build)
    assert done.exit_code == 0
    key = json.loads(done.output)["engine"]
    kept = tmp_path / "flowers.krl.boards" / "jetson" / "flowers.krl.device"
    assert set(done.files) == {kept / "engines.json", kept / "engines" / f"{key}.engine"}
    index = json.loads((kept / "engines.json").read_bytes())
    assert index["files"][f"engines/{key}.engine"]["size"] == (kept / "engines" / f"{key}.engine").stat().st_size
    assert tree(bundle.path) == before
    shown = krl_deploy.on("jetson", ["inspect-engine", "flowers.krl", "--json"])
    assert list(json.loads(shown.output)["engines"]) == [key]
    assert (shown.copied, shown.files) == (0, ())  # what is here already does not come again


def test_output_streams_and_an_interrupted_command_ends_on_the_board_as_well(server, board, tmp_path):
    board()
    bundle = write_bundle(tmp_path / "flowers.krl")
    slow = "import sys, time; print('begun', flush=True); time.sleep(600)"
    # A command that runs for long, in place of one of the two programs.
    assert krl_deploy.on("jetson", ["doctor"]).exit_code == 0
    environment = json.loads((home(server) / "environment.json").read_bytes())
    program = Path(environment["python"]).with_name("krl-runtime")
    usual = program.read_bytes()
    script(program, f'echo $$ > {tmp_path / "pid"}; exec {environment["python"]} -c "{slow}"')
    try:
        command = [sys.executable, "-m", "krl_deploy", "on", "jetson", "info", str(bundle.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
    finally:
        program.write_bytes(usual)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_without_a_shared_connection_each_request_has_its_own(server, board, monkeypatch):
    """OpenSSH on Windows shares none."""
    board()
    monkeypatch.setattr(ssh, "_LONGEST_SOCKET", 0)
    before = server.log.count("Accepted publickey")
    assert krl_deploy.on("jetson", ["doctor", "--json"]).exit_code == 0
    assert server.log.count("Accepted publickey") == before + 3


def test_remove_with_clean_leaves_nothing_on_the_board(server, board, slim):
    board()
    assert krl_deploy.on("jetson", ["doctor"]).exit_code == 0
    assert (home(server) / "environments").is_dir()
    assert krl_deploy.board_remove(name="jetson", clean=True).details["cleaned"]
    assert not home(server).exists()
