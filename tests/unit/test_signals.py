import os
import signal

import pytest

from vdsr import signals


@pytest.fixture
def caught():
    """The handlers, in a process that is about to train; those of before come back."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    signals.catch()
    signals.mode(signals.WAIT)
    yield
    signals.catch()  # forgets what was received
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([], 0),
        ([signal.SIGUSR1], 85),
        ([signal.SIGTERM], 143),
        ([signal.SIGUSR1, signal.SIGTERM], 143),
        ([signal.SIGTERM, signal.SIGUSR1], 143),
        ([signal.SIGUSR1, signal.SIGUSR1], 85),
    ],
)
def test_a_signal_waits_until_it_is_asked_for(caught, sent, status):
    send(*sent)
    assert signals.asked() == status


def test_with_something_to_tidy_up_it_is_an_exception(caught, capfd):
    signals.mode(signals.RAISE)
    with pytest.raises(signals.Preempted) as left:
        send(signal.SIGTERM)
    assert left.value.code == 143
    assert capfd.readouterr().err == "SIGTERM: leaving, with nothing to save\n"


def test_one_that_waited_is_raised_when_nobody_will_ask(caught):
    send(signal.SIGUSR1)
    with pytest.raises(signals.Preempted) as left:
        signals.mode(signals.RAISE)
    assert left.value.code == 85


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where there are threads
def test_a_forked_process_leaves_signals_to_its_parent(caught):
    child = os.fork()
    if child == 0:
        send(signal.SIGTERM)
        os._exit(signals.asked())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_submitit_s_handler_comes_after_the_checkpoint(caught):
    called = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    signals.catch()
    signals.mode(signals.WAIT)
    send(signal.SIGUSR2)
    assert (signals.asked(), called) == (85, [])
    with pytest.raises(signals.Preempted):
        signals.leave(signals.asked())
    assert called == [signal.SIGUSR2]


def test_without_submitit_sigusr2_is_left_alone(caught):
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    signals.catch()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
