from sweeps.attempts import (
    ATTEMPTS_FILE,
    MAX_LOST_ATTEMPTS,
    MAX_MEMORY_FAILURES,
    OUT_OF_MEMORY,
    end_attempt,
    given_up,
    last_error,
    lost_attempts,
    read_attempts,
    read_lines,
    start_attempt,
)


def test_attempts_are_numbered_and_their_ends_recorded(tmp_path):
    assert start_attempt(tmp_path, launch="a", pid=1) == 1
    end_attempt(tmp_path, 1, "a", "interrupted")
    assert start_attempt(tmp_path, launch="a", pid=2) == 2
    lines = read_lines(tmp_path / ATTEMPTS_FILE)
    assert [line["event"] for line in lines] == ["start", "end", "start"]
    assert lost_attempts(lines) == 1, "the second has no end"


def test_a_half_written_line_costs_only_itself(tmp_path):
    path = tmp_path / ATTEMPTS_FILE
    start_attempt(tmp_path, launch="a")
    with open(path, "a") as file:
        file.write('{"event": "sta')
    assert start_attempt(tmp_path, launch="a") == 2
    assert [line["attempt"] for line in read_lines(path)] == [1, 2]


def test_an_error_ends_a_cell_for_its_launch_only(tmp_path):
    start_attempt(tmp_path, launch="a")
    end_attempt(tmp_path, 1, "a", "error", error="ValueError: no")
    lines = read_lines(tmp_path / ATTEMPTS_FILE)
    assert given_up(lines, "a") == last_error(lines) == "ValueError: no"
    assert given_up(lines, "b") is None, "the next launch tries again"
    start_attempt(tmp_path, launch="b")
    end_attempt(tmp_path, 2, "b", "finished")
    assert last_error(read_lines(tmp_path / ATTEMPTS_FILE)) is None


def test_a_cell_that_kills_its_workers_is_given_up(tmp_path):
    for _ in range(MAX_LOST_ATTEMPTS):
        assert given_up(read_lines(tmp_path / ATTEMPTS_FILE), "a") is None
        start_attempt(tmp_path, launch="a")
    lines = read_lines(tmp_path / ATTEMPTS_FILE)
    assert "worker died 3 times" in given_up(lines, "a")
    assert given_up(lines, "b") is None


def test_another_rank_tells_what_rank_0_did_not_live_to_tell(tmp_path):
    start_attempt(tmp_path, launch="a")
    end_attempt(tmp_path, 1, "a", "error", rank=1, error="OSError: lost rank 0", ended_at="2")
    end_attempt(tmp_path, 1, "a", OUT_OF_MEMORY, rank=3, error="MemoryError", ended_at="3", layout="tp4", roomier=None)
    start_attempt(tmp_path, launch="a")
    end_attempt(tmp_path, 2, "a", "error", ended_at="6", error="ConnectionError: rank 2 is gone")
    end_attempt(tmp_path, 2, "a", "error", rank=2, ended_at="5", error="ValueError: no")
    lines = read_attempts(tmp_path)
    assert [line["event"] for line in lines] == ["start", "end", "start", "end"], "one end for each start"
    assert lines[1]["outcome"] == OUT_OF_MEMORY, "the others failed because of it"
    assert lines[3]["error"] == "ValueError: no", "what came first is the cause"
    assert lost_attempts(lines) == 0


def test_memory_that_ran_out_is_no_failure_while_there_is_a_roomier_layout(tmp_path):
    def fail(launch, roomier):
        number = start_attempt(tmp_path, launch=launch, layout="dp2")
        end_attempt(tmp_path, number, launch, OUT_OF_MEMORY, layout="dp2", roomier=roomier, error="MemoryError: much")
        return read_attempts(tmp_path)

    for _ in range(MAX_MEMORY_FAILURES - 1):
        lines = fail("a", "tp2")
        assert given_up(lines, "a") is None and last_error(lines) is None
    assert "out of memory under dp2" in given_up(fail("a", "tp2"), "a"), "only so often"
    assert given_up(fail("b", "tp2"), "b") is None, "a new launch tries again"
    assert "MemoryError: much" in last_error(fail("b", None)), "nothing roomier is left"
