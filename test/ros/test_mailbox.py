"""The mailbox keeps the newest letter of every camera and makes nobody wait for a silent one."""

import threading
import time

from dino_perception.ros.mailbox import Letter, Mailbox


def letter(number: int) -> Letter:
    return Letter(f"image {number}", number, 0.0)


def test_a_newer_letter_replaces_the_one_that_waits_and_says_so():
    mailbox = Mailbox()
    assert mailbox.put("front", letter(1)) is False
    assert mailbox.put("front", letter(2)) is True
    assert mailbox.take() == {"front": letter(2)}
    assert mailbox.put("front", letter(3)) is False


def test_all_that_waits_is_taken_at_once_longest_waiting_first():
    mailbox = Mailbox()
    mailbox.put("front", letter(1))
    mailbox.put("rear", letter(2))
    mailbox.put("front", letter(3))  # front's first letter is gone: rear waits longest now
    assert list(mailbox.take().items()) == [("rear", letter(2)), ("front", letter(3))]
    assert mailbox.take(timeout=0.01) == {}


def test_few_at_a_time_are_those_that_were_not_served_for_longest():
    mailbox, served = Mailbox(), []
    mailbox.put("slow", letter(1))
    for number in range(2, 9):  # two fast cameras, of which one is quicker than the other before every turn
        mailbox.put("fast", letter(number))
        mailbox.put("faster", letter(number))
        if number == 5:
            mailbox.put("slow", letter(5))
        served += [(camera, each.stamp_ns) for camera, each in mailbox.take(most=1).items()]
    assert served == [("slow", 1), ("fast", 3), ("faster", 4), ("slow", 5), ("fast", 6), ("faster", 7), ("fast", 8)]
    assert list(mailbox.take(most=2)) == ["faster"]  # fast has just been served and has sent nothing since


def test_taking_sleeps_without_using_the_processor_until_a_letter_comes():
    mailbox = Mailbox()
    taken, used = [], []

    def wait():
        before = time.thread_time()
        taken.append(mailbox.take())
        used.append(time.thread_time() - before)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    mailbox.put("front", letter(1))
    thread.join(5)
    assert taken == [{"front": letter(1)}]
    assert used[0] < 0.05  # a busy wait would have used all of the 0.3 s


def test_closing_wakes_the_taker_and_refuses_what_comes_later():
    mailbox = Mailbox()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(mailbox.take()))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert taken == [{}] and mailbox.closed
    assert mailbox.put("front", letter(1)) is False
    assert mailbox.take() == {}


def test_clearing_throws_away_what_waits():
    mailbox = Mailbox()
    mailbox.put("front", letter(1))
    mailbox.clear()
    assert mailbox.take(timeout=0.01) == {}


def test_many_writers_never_make_it_grow():
    mailbox = Mailbox()
    replaced = [0] * 4

    def write(camera: int):
        for number in range(500):
            replaced[camera] += mailbox.put(str(camera), letter(number))

    threads = [threading.Thread(target=write, args=(camera,)) for camera in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads):
        letters = mailbox.take(timeout=0.01)
        assert len(letters) <= 4
        taken += len(letters)
    taken += len(mailbox.take(timeout=0.01))
    assert taken + sum(replaced) == 4 * 500
