"""What a signal does to a program: raised at once or held, the second at once, exit statuses, what stays ignored."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
HEAD = "import time, sys; from sde_diffusion.storage import signals; signals.listen()\n"
WAIT = "print('ready', flush=True)\nfor _ in range(1000): time.sleep(0.01)\n"
TIDY = "try:\n  print('ready', flush=True)\n  for _ in range(1000): time.sleep(0.01)\nfinally: {}"


@pytest.fixture
def program():
    """program(code, ignored=()) -> a process that has said `ready`."""
    begun = []

    def begin(code: str, ignored: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        def as_a_shell_would() -> None:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + code],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_a_shell_would,
        )
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    status = process.wait(timeout=20)
    return status, process.stdout.read(), process.stderr.read()  # communicate() loses what readline() has buffered


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_raised_at_once_with_the_usual_status(program, number):
    process = program(TIDY.format("print('tidied up')"))
    process.send_signal(number)
    assert ended(process) == (128 + number, "tidied up\n", "")


def test_raised_where_python_ignores_exceptions_it_is_raised_once_more(program):
    finalizer = "class Dies:\n  def __del__(self):\n    signals.signal.raise_signal(15)\n    len(())\n"
    process = program(f"{finalizer}print('ready', flush=True)\nDies()\n{WAIT}")
    assert ended(process) == (143, "ready\n", "")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_what_is_ignored_at_the_start_stays_ignored(program, number):
    """As SIGHUP is under nohup, and SIGINT in the background of a shell."""
    others = [other for other in SIGNALS if other != number]
    process = program(WAIT, ignored=(number,))
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(others[0])
    assert ended(process)[0] == 128 + others[0]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_held_until_a_good_moment_and_reported_once(program, number):
    """Sent to the process and to its group, as `timeout` does, it is one request."""
    code = "signals.hold()\nprint('ready', flush=True)\nwhile not signals.asked(): time.sleep(0.01)\n"
    process = program(code + "time.sleep(0.3)\nprint('step done', flush=True)\nsignals.release()")
    process.send_signal(number)
    process.send_signal(number)
    assert ended(process) == (
        128 + number,
        "step done\n",
        f"\n{number.name}: stopping after this step (a second signal stops at once)\n",
    )


def test_the_second_ends_at_once(program):
    process = program("signals.hold()\n" + TIDY.format("print('tidied up')"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, out, _ = ended(process)
    assert (status, out) == (143, "tidied up\n")
    assert time.monotonic() - begin < 3


def test_the_third_ends_what_swallows_the_second(program):
    code = (
        "signals.hold()\nprint('ready', flush=True)\nwhile True:\n  try: time.sleep(0.01)\n  except BaseException: pass"
    )
    process = program(code)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == -signal.SIGTERM


STUCK = """import ctypes
signals.STUCK = signals.PATIENCE = 0.5
lock, memory = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock.argtypes = [ctypes.c_void_p]
lock(memory)
print('ready', flush=True)
lock(memory)
"""


@pytest.mark.parametrize("held", [False, True])
def test_a_main_thread_that_hangs_in_c_is_ended(program, held):
    """Where Python calls no handler: as in a collective whose other processes do not come."""
    process = program(("signals.hold()\n" if held else "") + STUCK)
    process.send_signal(signal.SIGTERM)
    if held:
        time.sleep(0.8)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_a_program_that_takes_long_to_tidy_up_is_left_alone(program):
    """It has heard, and is on its way."""
    process = program("signals.STUCK = signals.PATIENCE = 0.3\n" + TIDY.format("time.sleep(1.5); print('done')"))
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "done\n", "")


def test_a_fork_has_signals_of_its_own(program):
    """It ends by its default, and its parent, whose handler was not called, lives on."""
    code = """import os
signals.STUCK = signals.PATIENCE = 0.3
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.write(writing, b'x')  # before that, Python itself may forget a signal
    time.sleep(20)
    os._exit(1)
os.read(reading, 1)
print('ready', flush=True)
os.kill(child, 15)
print(os.waitpid(child, 0)[1])
time.sleep(1)
"""
    process = program(code)
    assert ended(process) == (0, "15\n", "")


def test_handlers_of_a_program_that_only_trains_are_put_back():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    from sde_diffusion.storage import signals

    found = signals.listen()
    signals.hold()
    signals.restore(found)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert not signals.asked()
