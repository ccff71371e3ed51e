"""The command of the README, with small settings."""

import re

import jax
import pytest

from blackjax_smile.__main__ import main
from blackjax_smile.arviz_export import import_arviz

pytest.importorskip("sklearn")

SMALL = ["--num-chains", "2", "--num-warmup", "400", "--num-samples", "50", "--thinning", "10"]


def test_demo_prints_a_table_and_writes_files(tmp_path, capsys):
    """Far better than guessing, and readable by ArviZ."""
    # blackjax.rhat broadcasts between ranks, which the other tests forbid.
    with jax.numpy_rank_promotion("allow"):
        assert main([*SMALL, "--num-components", "10", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    accuracy, density = map(float, re.search(r"SMILE +([\d.]+) +(-[\d.]+)", printed).groups())
    assert accuracy > 0.85
    assert density > -0.6
    for word in ("MAP estimate", "R-hat", "ESS", "rejected steps", "gradients", "time"):
        assert word in printed
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    idata = import_arviz().from_netcdf(str(tmp_path / "posterior.nc"))
    sizes = dict(idata["posterior"]["weights"].sizes)
    assert sizes == {"chain": 2, "draw": 50, "component": 10, "digit": 10}
    assert "deflection" in idata["sample_stats"]
    idata.close()

    # A run that has ended is not run again: the same table, from what is on disk.
    with jax.numpy_rank_promotion("allow"):
        arguments = [*SMALL, "--num-components", "10", "--output", str(tmp_path), "--resume"]
        assert main(arguments) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if "time" not in line] == [
        line for line in printed.splitlines() if "time" not in line
    ]
    with jax.numpy_rank_promotion("allow"):
        assert main([*arguments, "--seed", "1"]) == 2
    assert "is of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--batch-size", 33, "must be even; got 33"),
        ("--num-chains", 0, "at least 1, got 0"),
        ("--num-warmup", 1, "at least 100, got 1"),
        ("--num-samples", 0, "at least 8, got 0"),
        ("--num-components", 100, "at most 64, got 100"),
        ("--preconditioner", "foo", "must be one of"),
        ("--seed", -1, "at least 0, got -1"),
    ],
)
def test_bad_settings_are_an_error_and_no_traceback(flag, value, message, tmp_path, capsys):
    assert main([*SMALL, "--output", str(tmp_path), flag, str(value)]) == 2
    assert message in capsys.readouterr().err


def test_what_is_not_the_demos_is_not_removed(tmp_path, capsys):
    thesis = tmp_path / "draws.zarr" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("chapter 1")
    assert main([*SMALL, "--output", str(tmp_path)]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert thesis.read_text() == "chapter 1"


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    assert "--num-chains" in capsys.readouterr().out
