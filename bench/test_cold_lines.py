"""The program that counts cold cache lines; valgrind itself runs in `nox -s cold` only."""

import subprocess

import pytest

import cold_lines
from cold_lines import CASES, Case, Count


@pytest.mark.parametrize("name", CASES)
def test_a_case_can_be_called_again_and_again(name):
    call = CASES[name].make()
    for _ in range(3):
        call()


def test_a_sweep_is_larger_than_the_cache():
    (last_level,) = (option for option in cold_lines.CACHES if option.startswith("--LL="))
    size, _, line = map(int, last_level.removeprefix("--LL=").split(","))
    assert 2 * size < cold_lines.SWEPT * 4
    assert line == cold_lines.LINE


def test_the_summary_is_read_by_cachegrinds_own_order():
    # events: Ir I1mr ILmr Dr D1mr DLmr Dw D1mw DLmw
    assert cold_lines.parse("summary: 1 2 3 4 5 6 7 8 9") == Count(1, 3, 6, 9)
    assert Count(1, 3, 6, 9).lines == 18


def test_a_calls_count_is_a_difference(monkeypatch):
    def counted(_, rounds):  # 1000 before the rounds
        return Count(*(1000 + rounds * each for each in (7, 4, 2, 1)))

    monkeypatch.setattr(cold_lines, "counted", counted)
    assert cold_lines.per_call("add") == Count(7, 4, 2, 1)


@pytest.mark.parametrize(("budget", "kept"), [(None, True), (12, True), (11, False)])
def test_a_budget_is_for_what_is_no_array(budget, kept):
    case = Case(cold_lines.nothing, array_lines=8, budget=budget)
    text, found = cold_lines.report("case", case, Count(100, 10, 6, 4))
    assert found is kept
    assert ("TOO MANY" in text) is not kept
    assert " 12 cold lines" in text


@pytest.mark.parametrize("too_many", [0, 1])
def test_the_exit_status_says_whether_all_keep_to_their_budgets(too_many, monkeypatch, capsys):
    lines = CASES["batch_norm_infer"].budget + too_many

    def per_call(name):
        if name == "nothing":
            return Count(5, 1, 1, 1)
        return Count(5, lines + CASES[name].array_lines + 1, 1, 1)

    monkeypatch.setattr(cold_lines, "per_call", per_call)
    monkeypatch.setattr("shutil.which", lambda _: "valgrind")
    assert cold_lines.main(["add", "batch_norm_infer"]) == too_many
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_is_missing_or_unknown_is_said(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda _: None)
    for arguments, message in (([], "apt-get install valgrind"), (["sub"], "expected one of add")):
        with pytest.raises(SystemExit) as stopped:
            cold_lines.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_what_valgrind_says_is_shown(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no such tool")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="no such tool"):
        cold_lines.counted("add", 1)


def test_the_rounds_are_run_here(monkeypatch):
    calls = []
    monkeypatch.setitem(CASES, "add", Case(lambda: lambda: calls.append(None), 0))
    monkeypatch.setattr(cold_lines, "SWEPT", 10)
    monkeypatch.setattr("gc.disable", lambda: None)
    assert cold_lines.main(["add", "--rounds", "3"]) == 0
    assert len(calls) == cold_lines.WARM_UP + 3
