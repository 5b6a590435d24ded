"""Tables of launch configurations: order of look-up, keys, damage, provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastff.errors import DataError, MissingDependencyError
from fastff.kernels import candidates, tuning
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, Measurement

DEFAULT = LaunchConfig({"BLOCK": 16}, 1)
SHIPPED = LaunchConfig({"BLOCK": 32}, 2)
MEASURED = LaunchConfig({"BLOCK": 64}, 4, 3)
SPACE = LaunchSpace("some_kernel", DEFAULT)
CUDA = torch.device("cuda", 0)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Empty folders of shipped and user tables, and a GPU called sm_90."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(tuning.sys, "platform", "linux")
    monkeypatch.setattr(tuning, "_SHIPPED_TABLES", tmp_path / "shipped")
    monkeypatch.setattr(tuning, "find_arch", lambda index: "sm_90")
    for load in (tuning._load_user_table, tuning._load_shipped_table):
        load.cache_clear()
    yield tmp_path
    for load in (tuning._load_user_table, tuning._load_shipped_table):
        load.cache_clear()


def write(path: Path, config: LaunchConfig, key: str = "float32,features=8") -> None:
    tuning.write_table(path, [Measurement("some_kernel", key, config, 1.0, 1e-7)], {"gpu": "G"})


def test_key_holds_dtype_and_widths_in_one_order():
    assert tuning.make_key(torch.float32, b=2, a=1) == "float32,a=1,b=2"


def test_order_of_lookup(tables):
    key = "float32,features=8"
    assert tuning.lookup(SPACE, key, CUDA) == DEFAULT
    write(tables / "shipped" / "sm_90.json", SHIPPED)
    tuning._load_shipped_table.cache_clear()
    assert tuning.lookup(SPACE, key, CUDA) == SHIPPED
    write(tuning.find_user_table("sm_90"), MEASURED)
    assert tuning.lookup(SPACE, key, CUDA) == MEASURED
    assert tuning.lookup(SPACE, "float32,features=9", CUDA) == DEFAULT
    assert tuning.lookup(SPACE, key, torch.device("cpu")) == DEFAULT
    with tuning.override("some_kernel", SHIPPED):
        assert tuning.lookup(SPACE, key, CUDA) == SHIPPED
    assert tuning.lookup(SPACE, key, CUDA) == MEASURED


def test_written_default_of_a_single_key(tables):
    space = LaunchSpace("some_kernel", DEFAULT, exceptions=(("float32,features=8", MEASURED),))
    assert tuning.lookup(space, "float32,features=8", CUDA) == MEASURED
    assert tuning.lookup(space, "float32,features=8", torch.device("cpu")) == MEASURED
    assert tuning.lookup(space, "float32,features=4", CUDA) == DEFAULT
    write(tables / "shipped" / "sm_90.json", SHIPPED)
    tuning._load_shipped_table.cache_clear()
    assert tuning.lookup(space, "float32,features=8", CUDA) == SHIPPED


def test_user_table_is_in_the_cache_folder(tables):
    path = tuning.find_user_table("sm_90")
    assert path == tables / "user" / "fastff" / "kernels" / "sm_90.json"


def test_entry_for_other_block_names_is_a_miss(tables):
    write(tuning.find_user_table("sm_90"), LaunchConfig({"OLD_NAME": 8}, 1))
    assert tuning.lookup(SPACE, "float32,features=8", CUDA) == DEFAULT


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "entries": {}}', '{"format": 1}'])
def test_damaged_table_is_refused(tables, text):
    path = tuning.find_user_table("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DataError, match="delete it or run 'fastff tune' again"):
        tuning.lookup(SPACE, "float32,features=8", CUDA)


def test_table_keeps_the_fastest_and_earlier_keys(tmp_path):
    path = tmp_path / "sm_90.json"
    write(path, SHIPPED, "float32,features=4")
    measured = [
        Measurement("some_kernel", "float32,features=8", SHIPPED, 2.0, 1e-7),
        Measurement("some_kernel", "float32,features=8", MEASURED, 1.0, 1e-7),
        Measurement("some_kernel", "float32,features=8", DEFAULT, None, 0.5, "off"),
    ]
    tuning.write_table(path, measured, {"gpu": "G"})
    table = tuning.read_table(path)
    assert table == {
        ("some_kernel", "float32,features=4"): SHIPPED,
        ("some_kernel", "float32,features=8"): MEASURED,
    }
    entry = json.loads(path.read_text())["entries"]["some_kernel"]["float32,features=8"]
    assert entry["provenance"] == {"gpu": "G"}
    assert entry["time_ms"] == 1.0


def test_shipped_tables_state_where_they_come_from():
    for path in Path(tuning.__file__).parent.glob("tables/*.json"):
        assert tuning.read_table(path)
        for entries in json.loads(path.read_text())["entries"].values():
            for entry in entries.values():
                provenance = entry["provenance"]
                for name in ("gpu", "driver", "torch", "triton", "commit", "date"):
                    assert provenance[name], f"{path.name}: {name} is missing"


def test_machine_is_described():
    machine = tuning.describe_machine()
    assert machine["torch"] == torch.__version__
    assert machine["date"].endswith("+00:00")


def test_commit_of_a_machine_without_a_repository(monkeypatch):
    monkeypatch.setenv("FASTFF_COMMIT", "0123abc")
    assert tuning.describe_machine()["commit"] == "0123abc"


def test_nan_is_an_infinite_error():
    ones = torch.ones(3)
    assert tuning.find_relative_error(ones, ones) == 0
    assert tuning.find_relative_error(torch.tensor([1.0, float("nan"), 1.0]), ones) == float("inf")
    assert tuning.find_relative_error((ones, 2 * ones), (ones, ones)) == pytest.approx(1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_measuring_needs_a_gpu():
    workload = tuning.Workload(SPACE, "float32", lambda: None, lambda: None)
    with pytest.raises(MissingDependencyError, match="needs a CUDA device"):
        candidates.measure(workload)


def test_configuration_round_trip_and_arguments():
    assert LaunchConfig.from_dict(MEASURED.to_dict()) == MEASURED
    arguments = MEASURED.to_arguments()
    assert arguments["BLOCK"] == 64
    assert arguments["num_stages"] == 3
