"""What an app says of how far it is."""

import doctest

import pytest

from pairio.sdk import _progress, report_progress


def test_it_is_a_line_at_most_five_times_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(_progress, "_said_s", 0.0)
    report_progress(0.42, "fitting\nmodel  3")
    report_progress(0.43)
    now_s[0] += 0.21
    report_progress(0.5, "x" * 300)
    report_progress(1)
    assert capsys.readouterr().out.splitlines() == [
        "[progress] 42.0% fitting model 3",
        "[progress] 50.0% " + "x" * 200,
        "[progress] 100.0%",
    ]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), 42])
def test_what_is_no_fraction_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        report_progress(wrong)


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "_said_s", 0.0)
    assert doctest.testmod(_progress, extraglobs={"report_progress": report_progress}) == (0, 1)
