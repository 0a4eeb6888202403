"""Boards over the network: servers, a fleet, and what happens when one goes away."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.boards import (
    A72,
    A76,
    TRIPLE,
    built,
    emulated,
    in_emulator,
    server,
    tracked,
)
from tests.targets.builds import graph_of
from tilewright import oracle
from tilewright.errors import DeviceFailed, UnusableInput
from tilewright.graph import Graph
from tilewright.measurement import take_turns
from tilewright.protocol import silent
from tilewright.targets.arm import ArmBackend
from tilewright.targets.board import greeting, held
from tilewright.targets.board.make import RUNNER, SERVER, board_programs
from tilewright.targets.board.place import Place, parse_place
from tilewright.targets.board.tracker import free_boards
from tilewright.tools.share_jobs import share_jobs


def small() -> Graph:
    return graph_of("g (float[16,8] x) => (float[16,6] y) { y = MatMul(x, w) }", w=normal(8, 6))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = built(small(), A76, tmp_path_factory.mktemp("artifact"))
    small().save(folder / "model.onnx")
    return folder


# ---- what --device says ----


def test_a_device_is_an_address_with_a_port_and_a_key() -> None:
    assert parse_place("rpc://pi5") == Place("rpc", "pi5", 9090, "tilewright")
    assert parse_place("rpc://10.0.0.7:9100/lab") == Place("rpc", "10.0.0.7", 9100, "lab")
    assert parse_place("tracker://lab/pi4") == Place("tracker", "lab", 9190, "pi4")
    assert str(parse_place("tracker://lab:9000/pi4")) == "tracker://lab:9000/pi4"


@pytest.mark.parametrize("text", ["", "pi5", "ftp://pi5", "rpc://", "rpc://a:b", "rpc://a/b/c"])
def test_what_is_no_device_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(UnusableInput, match=r"write qemu, rpc://HOST:PORT/KEY"):
        parse_place(text)


def test_without_a_device_and_an_emulator_the_message_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UnusableInput, match=r"--device rpc://.*apt-get install qemu-user g"):
        parse_place(None)


# ---- a board ----


@emulated
def test_an_artifact_runs_and_is_timed_over_the_network(artifact: Path) -> None:
    feeds = {"x": normal(16, 8)}
    with server("--key", "desk") as (_, port):
        device = f"rpc://127.0.0.1:{port}/desk"
        run = ArmBackend().load(artifact, 1, device)
        found = run(feeds)["y"]
        np.testing.assert_allclose(found, oracle.run(small(), feeds)["y"], rtol=1e-5, atol=1e-6)
        timer = ArmBackend().timer(artifact, feeds, 1, device)
        assert timer is not None
        samples = timer()
        assert len(samples.samples_ns) >= 1
        assert min(samples.samples_ns) > 0


@emulated
def test_artifacts_for_two_cores_are_timed_in_turns_on_one_board(
    artifact: Path, tmp_path: Path
) -> None:
    older = built(small(), A72, tmp_path / "older")
    with server() as (_, port):
        device = f"rpc://127.0.0.1:{port}"
        timers = [
            ArmBackend().timer(folder, {"x": normal(16, 8)}, 1, device)
            for folder in (artifact, older)
        ]
        taken = take_turns([timer for timer in timers if timer is not None], rounds=2)
        assert [len(rounds) for rounds in taken] == [2, 2]
        assert len({samples.device for rounds in taken for samples in rounds}) == 1


@emulated
@pytest.mark.parametrize(
    ("milliseconds", "runs"), [(30_000, [1]), (400, [1, 1]), (1, [1, 500]), (0.001, [1, 1000])]
)
def test_a_round_takes_half_a_second_or_one_run(
    milliseconds: float, runs: list[int], artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    each = round(milliseconds * 1e6)

    def timed(_: held.HeldBoard, number: int, repeats: int) -> tuple[int, ...]:
        calls.append(repeats)
        return (each,) * repeats

    monkeypatch.setattr(held.HeldBoard, "time", timed)
    with server() as (_, port):
        device = f"rpc://127.0.0.1:{port}"
        timer = ArmBackend().timer(artifact, {"x": normal(16, 8)}, 1, device)
        assert timer is not None
        assert timer().samples_ns == (each,) * runs[-1]
    assert calls == runs


@emulated
def test_the_steps_of_a_model_are_timed_on_a_board(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[16,8] x) => (float[16,6] y) { a = MatMul(x, w) y = Softmax(a) }",
        w=normal(8, 6),
    )
    with server() as (_, port):
        device = f"rpc://127.0.0.1:{port}"
        steps = ArmBackend().steps(graph, A76, tmp_path, {"x": normal(16, 8)}, 1, device)
        assert [sorted(nodes) for nodes in steps.nodes][-2:] == [["MatMul_0"], ["Softmax_1"]]
        assert all(taken > 0 for taken in steps.time())


@emulated
def test_a_wrong_key_and_a_silent_port_are_told_apart_from_a_board(artifact: Path) -> None:
    with (
        server("--key", "desk") as (_, port),
        pytest.raises(DeviceFailed, match=rf'{port}/other: the .* another key than "other"'),
    ):
        ArmBackend().load(artifact, 1, f"rpc://127.0.0.1:{port}/other")
    with pytest.raises(DeviceFailed, match=r"/desk: there is no server \(Connection refused\)"):
        ArmBackend().load(artifact, 1, f"rpc://127.0.0.1:{port}/desk")


@emulated
def test_boards_are_looked_for_before_anything_is_compiled() -> None:
    with server("--key", "desk") as (_, port):
        ArmBackend().check(A76, f"rpc://127.0.0.1:{port}/desk", None)
        with pytest.raises(DeviceFailed, match="another key"):
            ArmBackend().check(A76, f"rpc://127.0.0.1:{port}/other", None)
    for kind, what in (("rpc", "server"), ("tracker", "tracker")):
        with pytest.raises(DeviceFailed, match=f"there is no {what}"):
            ArmBackend().check(A76, f"{kind}://127.0.0.1:{port}/desk", None)


@pytest.mark.parametrize("said", [b"SSH-2.0", b"x", b""])
def test_what_answers_something_else_is_no_server_of_boards(said: bytes) -> None:
    def answer() -> None:
        client, _ = listening.accept()
        with client:
            client.recv(100)
            client.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(DeviceFailed, match="what answers is no server of boards"):
            greeting.check_server(Place("rpc", "127.0.0.1", listening.getsockname()[1]))
        answering.join()


def test_what_is_no_name_of_a_machine_has_no_server() -> None:
    for host in ("a..b", "a" * 64):
        with pytest.raises(DeviceFailed, match="there is no server"):
            greeting.check_server(Place("rpc", host, 9090))


def test_a_server_that_does_not_answer_yet_may_be_at_work_for_somebody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(greeting, "_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        greeting.check_server(Place("rpc", "127.0.0.1", silent.getsockname()[1]))


@emulated
def test_a_board_that_hangs_is_given_up_and_serves_the_next(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as (process, port):
        device = f"rpc://127.0.0.1:{port}"
        run = ArmBackend().load(artifact, 1, device)
        run({"x": normal(16, 8)})
        monkeypatch.setattr(held, "CALL_SECONDS", 1.0)
        os.killpg(process.pid, signal.SIGSTOP)
        with pytest.raises(DeviceFailed, match=r'did not answer to "run" within 1 s'):
            run({"x": normal(16, 8)})
        os.killpg(process.pid, signal.SIGCONT)
        monkeypatch.undo()
        again = ArmBackend().load(artifact, 1, device)
        assert again({"x": normal(16, 8)})["y"].shape == (16, 6)


@emulated
def test_a_board_that_dies_is_reported_and_not_used_again(artifact: Path) -> None:
    with server() as (process, port):
        run = ArmBackend().load(artifact, 1, f"rpc://127.0.0.1:{port}")
        os.killpg(process.pid, signal.SIGKILL)
        with pytest.raises(DeviceFailed, match=rf"rpc://127.0.0.1:{port}/tilewright: "):
            run({"x": normal(16, 8)})
        with pytest.raises(DeviceFailed, match="given up before"):
            run({"x": normal(16, 8)})


@emulated
def test_a_server_outlives_clients_that_talk_nonsense(artifact: Path) -> None:
    with server() as (_, port):
        for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack("<ii", 0xFF271, -5)):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(nonsense)
        run = ArmBackend().load(artifact, 1, f"rpc://127.0.0.1:{port}")
        assert run({"x": normal(16, 8)})["y"].shape == (16, 6)


@emulated
def test_an_emulator_ends_with_the_process_that_it_was_started_for(artifact: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from tilewright.targets.arm import ArmBackend\n"
        "run = ArmBackend().load(pathlib.Path(sys.argv[1]), 1, 'qemu')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    # Who inherited the pipe would keep it open.
    command = [sys.executable, "-c", code, str(artifact)]
    subprocess.run(command, stderr=subprocess.PIPE, timeout=120, check=False)


@emulated
def test_what_talks_to_a_board_that_hangs_ends_with_the_process_that_it_works_for(
    artifact: Path,
) -> None:
    code = (
        "import os, sys, pathlib, threading, numpy\n"
        "from tilewright.targets.arm import ArmBackend\n"
        "run = ArmBackend().load(pathlib.Path(sys.argv[1]), 1, sys.argv[2])\n"
        "print('loaded', flush=True), input()\n"
        "threading.Timer(1, os.kill, (os.getpid(), 9)).start()\n"
        "run({'x': numpy.zeros((16, 8), numpy.float32)})\n"
    )
    with server() as (process, port):
        command = [sys.executable, "-c", code, str(artifact), f"rpc://127.0.0.1:{port}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"loaded\n"
            os.killpg(process.pid, signal.SIGSTOP)
            # Its stderr is closed once all that hold it have ended.
            _, said = asking.communicate(b"\n", timeout=60)
        assert (asking.returncode, said) == (-signal.SIGKILL, b"")
        os.killpg(process.pid, signal.SIGCONT)


@emulated
def test_an_artifact_that_is_not_used_any_more_goes_before_the_next_is_opened(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = held.HeldBoard._call

    def noted(board: held.HeldBoard, method: str, *arguments: object) -> object:
        asked.append(method)
        return ask(board, method, *arguments)

    with server() as (_, port):
        device = f"rpc://127.0.0.1:{port}"
        first = ArmBackend().load(artifact, 1, device)
        second = ArmBackend().load(artifact, 1, device)
        monkeypatch.setattr(held.HeldBoard, "_call", noted)
        del first
        third = ArmBackend().load(artifact, 1, device)
        assert asked == ["close", "open"]
        for run in (second, third):
            assert run({"x": normal(16, 8)})["y"].shape == (16, 6)


# ---- the runner ----


@emulated
def test_the_runner_reads_and_writes_arrays_without_python(
    artifact: Path, tmp_path: Path
) -> None:
    x = normal(16, 8)
    np.save(tmp_path / "x.npy", x)
    command = in_emulator(RUNNER, str(artifact), "--input", f"x={tmp_path / 'x.npy'}")
    command += ["--output", str(tmp_path), "--repeat", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("y: 16x6\n3 runs: fastest ")
    expected = oracle.run(small(), {"x": x})["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-6)


@emulated
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No artifact was given"),
        (["nowhere"], '"nowhere/program.json" cannot be read'),
        (["{artifact}", "--input", "x"], "--input x: write NAME=FILE.npy"),
        (["{artifact}", "--input", "z={cut}"], 'has no input "z"'),
        (["{artifact}", "--input", "x={cut}"], "ends too early"),
        (["{artifact}", "--input", "x={text}"], "is no .npy file"),
        (["{artifact}", "--input", "x={wide}"], "be float32 [16, 8]; found float64 [16, 8]."),
        (["{artifact}", "--output", "{artifact}/none"], "there is no such folder. Create it"),
        (["{artifact}", "--repeat", "0"], "--repeat 0: give a whole number"),
        (["{artifact}", "--quick"], "--quick needs a value"),
    ],
)
def test_the_runner_refuses_what_it_cannot_use_in_one_message(
    arguments: list[str], said: str, artifact: Path, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.npy" for name in ("cut", "text", "wide")}
    np.save(files["wide"], np.zeros((16, 8)))
    np.save(files["cut"], np.zeros((16, 8), np.float32))
    files["cut"].write_bytes(files["cut"].read_bytes()[:-4])
    files["text"].write_text("x")
    given = [each.format(artifact=artifact, **files) for each in arguments]
    done = subprocess.run(
        in_emulator(RUNNER, *given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tilewright-run: ")
    assert said in done.stderr


@emulated
def test_the_runner_says_which_inputs_are_zeros(artifact: Path) -> None:
    command = in_emulator(RUNNER, str(artifact))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Estimates count from the first that is written to stdout, which runs are behind.
    assert (done.stderr, done.stdout) == ("x: not given, so zeros\n", "y: 16x6\n")


@emulated
@pytest.mark.parametrize("program", [RUNNER, SERVER])
def test_the_programs_say_how_they_are_used(program: str) -> None:
    for asked in ("--help", "-h"):
        command = in_emulator(program, asked)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"Usage: {program} ")


@emulated
def test_a_damaged_artifact_is_refused_by_the_runner(artifact: Path, tmp_path: Path) -> None:
    for name in ("program.json", "weights.bin", "indices.bin", "constants.bin"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    (tmp_path / "program.json").write_text('{"bases": [')
    command = in_emulator(RUNNER, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "is damaged" in done.stderr) == (2, True)


@emulated
@pytest.mark.parametrize("name", ["weights.bin", "indices.bin"])
def test_an_artifact_that_was_cut_short_is_refused_by_the_runner(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    for file in artifact.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-8])
    done = subprocess.run(
        in_emulator(RUNNER, str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"has {len(whole) - 8} bytes, and {len(whole)} were written" in done.stderr


# ---- a fleet ----


@pytest.fixture
def tracker() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1), "--silent"]
    process = subprocess.Popen(command, start_new_session=True)
    yield port
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@tracked
def test_a_key_that_the_fleet_never_had_is_told_at_once(tracker: int, artifact: Path) -> None:
    deadline = time.monotonic() + 60
    while not _is_up(tracker):
        assert time.monotonic() < deadline, "the tracker did not start"
        time.sleep(0.2)
    with pytest.raises(DeviceFailed, match=r"never had a board with this key; it knows of no"):
        ArmBackend().load(artifact, 1, f"tracker://127.0.0.1:{tracker}/pi4")


@tracked
def test_a_fleet_finishes_its_work_when_a_board_is_killed(tracker: int, artifact: Path) -> None:
    fleet = Place("tracker", "127.0.0.1", tracker, "pi5")
    options = ("--key", "pi5", "--tracker", f"127.0.0.1:{tracker}")
    with server(*options) as (first, first_port), server(*options):
        deadline = time.monotonic() + 60
        while not _two_are_free(fleet):
            assert time.monotonic() < deadline, "the boards did not join the fleet"
            time.sleep(0.2)
        told: list[str] = []
        both = threading.Barrier(2, timeout=120)
        feeds = [{"x": normal(16, 8, seed=i)} for i in range(6)]

        def job(number: int) -> np.ndarray:
            run = ArmBackend().load(artifact, 1, str(fleet))
            if number < 2 and not told and not both.broken:
                both.wait()  # each board has a job
                if number == 0:
                    os.killpg(first.pid, signal.SIGKILL)
                    first.wait()
            return run(feeds[number])["y"]

        results = share_jobs(range(6), 2, job, told.append)
    for found, fed in zip(results, feeds, strict=True):
        np.testing.assert_allclose(found, oracle.run(small(), fed)["y"], rtol=1e-5, atol=1e-6)
    assert any(f"rpc://127.0.0.1:{first_port}" in line for line in told)


def _two_are_free(fleet: Place) -> bool:
    try:
        return free_boards(fleet) == 2
    except DeviceFailed:
        return False


def test_a_tracker_that_is_not_there_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DeviceFailed, match=r"there is no tracker .*rpc_tracker"):
        free_boards(Place("tracker", "127.0.0.1", port, "pi5"))


def test_the_programs_are_made_once() -> None:
    told: list[str] = []
    folder = board_programs(TRIPLE, silent)
    assert board_programs(TRIPLE, told.append) == folder
    assert told == []


def _is_up(port: int) -> bool:
    try:
        free_boards(Place("tracker", "127.0.0.1", port, "pi4"))
    except DeviceFailed:
        return False
    return True
