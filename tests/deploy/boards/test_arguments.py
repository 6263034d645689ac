"""Which words of a command line are paths, and what they are called on the board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from krl_deploy.boards.arguments import map_arguments
from krl_deploy.boards.command import board_command
from krl_deploy.boards.copying import collect
from krl_deploy.boards.facts import facts_of
from krl_deploy.boards.inputs import read_input
from krl_deploy.boards.registry import Board, BoardError, add_board, boards_file, read_boards
from krl_deploy.boards.wheels import build_wheel
from krl_deploy.cli import COMMANDS
from krl_deploy.verbs import board_configurations
from krl_runtime import UsageError
from krl_runtime.cli.program import command_parsers
from krl_runtime.files import sha256_bytes


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRL_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("flowers.krl", "photos/rose", "int8", "../other/flowers.krl"):
        Path(name).mkdir(parents=True)
    for name in ("a.png", "key.pub", "labels.txt", "photos/b.png"):
        Path(name).write_text(name)


def mapped(*arguments: str):
    command = board_command(arguments, board_configurations())
    return command.program, map_arguments(command.arguments, command.options)


def test_every_command_has_a_configuration_and_each_program_its_commands():
    assert set(board_configurations()) == set(COMMANDS)
    assert not set(COMMANDS) & set(command_parsers())


@pytest.mark.parametrize(
    ("given", "wanted", "inputs"),
    [
        # A folder with the name of a variant is no input where a variant is meant.
        ("evaluate flowers.krl photos --variant int8 --limit 5", None, ["flowers.krl", "photos"]),
        ("evaluate flowers.krl photos --variant int8 fp16 --trust key.pub", None, ["flowers.krl", "photos", "key.pub"]),
        ("classify flowers.krl ../other/flowers.krl", "classify flowers.krl 2/flowers.krl", None),
        ("classify flowers.krl photos photos/b.png", "classify flowers.krl photos 2/b.png", None),
        ("classify flowers.krl a.png a.png --bundle=flowers.krl", None, ["flowers.krl", "a.png"]),
        ("bench flowers.krl --image /dev/null --vari int8", None, ["flowers.krl"]),
        ("bench flowers.krl --verbose", "bench --verbose flowers.krl", None),
        ("quantize flowers.krl --data photos --from-generator int8 --limit 3", None, ["flowers.krl", "photos", "int8"]),
        ("import a.png -o new.krl --data photos --labels labels.txt", None, ["a.png", "photos", "labels.txt"]),
        ("build-engine flowers.krl --precision int8 --json --no-refit", None, ["flowers.krl"]),
        (
            "index flowers.krl photos -o s.index --none-of-these 0.1 --others int8",
            None,
            ["flowers.krl", "photos", "int8"],
        ),
        ("search flowers.krl a.png --gallery photos --sheet s.png", None, ["flowers.krl", "a.png", "photos"]),
        ("build-engine flowers.krl --compute-capability 8.6 8.9 --emit-script=s.sh", None, ["flowers.krl"]),
    ],
)
def test_paths_are_found_by_the_options_of_the_command(given, wanted, inputs):
    verb, *arguments = given.split()
    _, found = mapped(verb, *arguments)
    assert [verb, *found.arguments] == (wanted or given).split()
    if inputs is not None:
        assert list(found.inputs) == inputs
    assert all(path.exists() for path in found.inputs.values())


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("-oout", "out"),
        ("--out=../out", "out"),
        ("--ou=/tmp/x/out", "out"),
        ("-o./a/out", "a/out"),
        ("-ophotos", "2/photos"),
    ],
)
def test_results_have_a_name_that_no_input_has(word, name):
    Path("gan.krl").mkdir()
    _, found = mapped("restore", "gan.krl", "photos", word)
    assert list(found.outputs) == [name]
    assert found.outputs[name] == Path(word.removeprefix("-o") if word[1] == "o" else word.partition("=")[2])
    assert found.arguments[-1].endswith(name)


@pytest.mark.parametrize("word", ["--profile ../orin.json", "--profile=../orin.json", "--prof ../orin.json"])
def test_a_file_that_grows_is_sent_if_it_is_here_and_comes_back(word):
    _, found = mapped("bench", "flowers.krl", *word.split())
    assert (list(found.inputs), found.outputs) == (["flowers.krl"], {"orin.json": Path("../orin.json")})
    Path("../orin.json").write_text("{}")
    _, found = mapped("bench", "flowers.krl", *word.split())
    assert found.inputs == {"flowers.krl": Path("flowers.krl"), "orin.json": Path("../orin.json")}
    assert found.outputs == {"orin.json": Path("../orin.json")}
    assert found.arguments[-1].endswith("orin.json")


def test_faults_are_found_before_anything_is_copied(capsys):
    for arguments, message in (
        (["clasify", "flowers.krl"], "unknown command 'clasify' for a board (did you mean 'classify'?)"),
        (["board", "list"], "unknown command 'board' for a board"),
        (["bench", "flowers.krl", "--itterations", "3"], "unknown option --itterations"),
        (["quantize", "flowers.krl", "--percentile", "3"], "--percentile is 3.0; accepted"),
    ):
        with pytest.raises(UsageError) as caught:
            mapped(*arguments)
        assert message in str(caught.value)
    with pytest.raises(SystemExit):
        mapped("bench", "flowers.krl", "--iterations", "many")
    with pytest.raises(UsageError, match="private key"):
        mapped("package", "flowers.krl", "--slim", "--target", "cpu", "-o", "x.tar", "--key", "key.pub")


def test_the_same_code_makes_the_same_wheel():
    (name, data), again = build_wheel("krl-runtime"), build_wheel("krl-runtime")
    assert again == (name, data)
    assert name.startswith("krl_runtime-")
    assert name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize(
    "values",
    [
        {"host": "-oProxyCommand=touch x"},
        {"host": "user@-host"},
        {"host": "user@host; ls"},
        {"host": "host\nother"},
        {"name": "../up"},
        {"name": "-x"},
        {"port": 0},
        {"port": 70000},
        {"python": "-c"},
        {"python": "python3; ls"},
        {"python": "$(ls)"},
        {"folder": "../x"},
        {"folder": "/"},
        {"folder": "~"},
    ],
)
def test_parts_of_command_lines_are_checked(values):
    with pytest.raises(UsageError, match="accepted: "):
        Board(**{"name": "jetson", "host": "user@host", **values})


def test_boards_are_kept_as_json_and_a_damaged_list_is_left_alone():
    for host in ("user@host", "host", "jetson.local", "u.ser-1@[fe80::1%eth0]", "192.168.1.7"):
        add_board(Board("b", host, 22))
    add_board(Board("a", "host", python="~/env/bin/python"))
    kept = json.loads(boards_file().read_bytes())
    assert {name: (item["host"], item["port"]) for name, item in kept["boards"].items()} == {
        "a": ("host", None),
        "b": ("192.168.1.7", 22),
    }
    assert read_boards()["a"].python == "~/env/bin/python"
    for content in (b"[]", b"{", b'{"schema_version": 2}', b'{"schema_version": 1, "boards": {"a": {"host": 5}}}'):
        boards_file().write_bytes(content)
        with pytest.raises(BoardError, match="is not a readable list of boards"):
            add_board(Board("c", "host"))
        assert boards_file().read_bytes() == content


def test_links_in_folders_are_followed_and_never_for_ever():
    Path("photos/again").symlink_to(Path("photos").absolute())
    Path("photos/linked.png").symlink_to(Path("a.png").absolute())
    found = read_input(Path("photos"))
    assert sorted(found.files) == ["b.png", "linked.png"]
    assert found.id == read_input(Path("../here/photos")).id != read_input(Path("int8")).id


def test_a_list_brings_the_images_of_all_its_columns():
    """Also without a label, where other columns are no labels."""
    Path("photos/list.csv").write_text("image,right,color,size\nrose/a.png,b.png,red,1.5\nb.png,../a.png,blue,2\n")
    Path("photos/rose/a.png").write_text("a")
    _, found = mapped("classify", "flowers.krl", "photos/list.csv")
    assert found.arguments[-1] == "photos/list.csv"
    assert sorted(read_input(found.inputs["photos"]).files) == ["b.png", "list.csv", "rose/a.png"]


def test_an_image_among_further_inputs_is_copied():
    more = ["--input", "color=red", "--input", "right=photos/b.png", "--input=size=3"]
    _, found = mapped("classify", "flowers.krl", "a.png", *more)
    assert found.arguments[2:] == ["--input", "color=red", "--input", "right=photos/b.png", "--input=size=3"]
    assert found.inputs["photos/b.png"] == Path("photos/b.png")
    _, found = mapped("classify", "flowers.krl", f"--input=right={Path('a.png').absolute()}")
    assert found.arguments[-1] == "--input=right=a.png"


def test_a_list_brings_its_images_and_nothing_else_of_its_folder():
    Path("photos/list.csv").write_text("image,label\nrose/a.png,rose\nb.png,rose\ngone.png,rose\n")
    Path("photos/rose/a.png").write_text("a")
    Path("photos/other.png").write_text("other")
    for given in ("photos/list.csv", str(Path("photos/list.csv").absolute())):
        _, found = mapped("evaluate", "flowers.krl", given)
        assert found.arguments[-1] == "photos/list.csv"
        assert sorted(read_input(found.inputs["photos"]).files) == ["b.png", "list.csv", "rose/a.png"]
    Path("list.csv").write_text("image,label\na.png,rose\n")
    _, found = mapped("quantize", "flowers.krl", "--data=list.csv")
    assert found.arguments[-1] == "--data=here/list.csv"
    assert sorted(read_input(found.inputs["here"]).files) == ["a.png", "list.csv"]
    # Other files with such a name are copied as they are.
    Path("names.json").write_text('["rose"]')
    _, found = mapped("import", "a.png", "-o", "new.krl", "--data", "photos", "--labels", "names.json")
    assert found.arguments[-1] == "names.json"
    assert list(read_input(found.inputs["names.json"]).files) == [""]


def test_a_jetson_is_recognized_by_its_release():
    found = {
        "python": "3.10.12",
        "machine": "aarch64",
        "system": "Linux 5.15",
        "free_bytes": 1,
        "folder": "",
        "modules": {},
    }
    line = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    assert facts_of({**found, "tegra_release": line})["jetpack"] == "JetPack 6.1, 6.2"
    assert facts_of({**found, "tegra_release": ""})["jetpack"] == ""


class _Evil:
    """A board that sends files for places that no command wrote to."""

    def __init__(self, files):
        self.board, self.files, self.sent = Board("evil", "host"), files, []

    def request(self, request):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def receive(self):
        return {"files": self.files}

    def send(self, value):
        self.sent.append(value)

    def close(self):
        return None


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a\0b"])
def test_a_board_writes_nowhere_but_in_the_folder_of_its_results(tmp_path, name):
    evil = _Evil([["input", "x", name, 4, "0" * 64]])
    with pytest.raises(BoardError, match="sends a file that is refused"):
        collect(evil, "job", (), lambda kind, key, name: (tmp_path / "results", name))
    assert not evil.sent
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "entry",
    [
        ["input", "x", "a", 4, "a/../b"],
        ["input", "x", "a", 4, 5],
        ["input", "x", "a", -4, "0" * 64],
        ["input", "x", "a", "4", "0" * 64],
        ["input", "x", 7, 4, "0" * 64],
        ["input", "x", "a", 4],
        "input",
    ],
)
def test_a_list_of_results_that_is_none_is_refused(tmp_path, entry):
    with pytest.raises(BoardError, match="list of results that is refused"):
        collect(_Evil([entry]), "job", (), lambda kind, key, name: (tmp_path / "results", name))
    assert not (tmp_path / "results").exists()


class _Sending(_Evil):
    """A board that sends the rest of each file, as it is asked to."""

    def __init__(self, files, contents):
        super().__init__(files)
        self.contents, self.stream = contents, b""

    def send(self, value):
        if isinstance(value, list):
            self.stream = b"".join(self.contents[index][offset:] for index, offset in value)

    def read(self, size):
        part, self.stream = self.stream[:size], self.stream[size:]
        assert part, "more is read than was sent"
        return part


def test_equal_files_of_a_copy_that_broke_off_arrive_whole(tmp_path):
    content = b"0123456789"
    sha = sha256_bytes(content)
    files = [["input", "x", name, len(content), sha] for name in ("a", "b")]

    def target(kind, key, name):
        return tmp_path / "results", name

    class Breaking(_Sending):
        def read(self, size):
            if not self.stream.startswith(content[:4]) or len(self.stream) < len(content):
                raise BoardError("broke")
            self.stream = b""
            return content[:4]

    with pytest.raises(BoardError, match="broke"):
        collect(Breaking(files, [content, content]), "job", (), target)
    collect(_Sending(files, [content, content]), "job", (), target)
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == {"a": content, "b": content}
