"""Processes that use one SQLite database in WAL mode at once: `make FILE`, or `hammer FILE ROUNDS`.

Money moves between accounts; none may be lost, and the database must stay sound.
"""
import multiprocessing
import random
import sqlite3
import sys

PROCESSES, ACCOUNTS, START = 4, 50, 1000


def connect(path):
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.execute("PRAGMA mmap_size=1000000")
    database.execute("PRAGMA wal_autocheckpoint=20")
    return database


def make(path):
    database = connect(path)
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER)")
    database.execute("CREATE TABLE journal (process INTEGER, round INTEGER, note TEXT)")
    database.executemany("INSERT INTO account VALUES (?, ?)", [(n, START) for n in range(ACCOUNTS)])
    database.close()


def work(path, process, rounds):
    numbers, database = random.Random(process), connect(path)
    for number in range(rounds):
        database.execute("BEGIN IMMEDIATE")
        amount, (giver, taker) = numbers.randrange(50), numbers.sample(range(ACCOUNTS), 2)
        database.execute("UPDATE account SET money = money - ? WHERE id = ?", (amount, giver))
        database.execute("UPDATE account SET money = money + ? WHERE id = ?", (amount, taker))
        database.execute("INSERT INTO journal VALUES (?, ?, ?)", (process, number, "x" * numbers.randrange(3000)))
        database.execute("ROLLBACK" if number % 10 == 9 else "COMMIT")
        total, = database.execute("SELECT sum(money) FROM account").fetchone()
        assert total == ACCOUNTS * START, f"{total} in process {process}, round {number}"
        if number % 20 == process:
            database.close()
            database = connect(path)


def hammer(path, rounds):
    workers = [multiprocessing.Process(target=work, args=(path, n, rounds)) for n in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    database = connect(path)
    kept = PROCESSES * sum(number % 10 != 9 for number in range(rounds))
    assert database.execute("SELECT count(*) FROM journal").fetchone() == (kept,)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.execute("VACUUM")
    database.execute("PRAGMA journal_mode=DELETE")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        hammer(sys.argv[2], int(sys.argv[3]))
