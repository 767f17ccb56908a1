"""The shipped conversations: LLaVA's format, and exactly what the writer makes for the seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reference import DATA_DIR, MODEL_DIR, SECOND_MODEL_DIR
from reference.dataset import SPLIT_SIZES, Split, sample_split, to_record, write_split
from reference.questions import ASKERS

SPLITS: list[Split] = ["calibration", "validation", "test"]


def records_of(split: Split) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((DATA_DIR / f"{split}.json").read_text(encoding="utf-8"))
    return records


def built_seed() -> int:
    seed: int = json.loads((MODEL_DIR / "metrics.json").read_text(encoding="utf-8"))["training"]["seed"]
    return seed


@pytest.mark.parametrize("split", SPLITS)
def test_shipped_split_is_valid(split: Split) -> None:
    records = records_of(split)
    assert len(records) == SPLIT_SIZES[split]
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        speakers = [turn["from"] for turn in record["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert record["conversations"][0]["value"].startswith("<image>\n")
        assert sum("<image>" in turn["value"] for turn in record["conversations"]) == 1
        assert all(turn["value"].strip() for turn in record["conversations"])
        assert len(record["kinds"]) == len(speakers) // 2
        assert set(record["kinds"]) <= set(ASKERS)
        with Image.open(DATA_DIR / record["image"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))


def test_no_scene_is_in_two_splits() -> None:
    scenes = [scene for split in SPLITS for scene in {c.scene for c in sample_split(split, 0, 60)[0]}]
    assert len(set(scenes)) == len(scenes) == 180


@pytest.mark.parametrize("split", SPLITS)
def test_shipped_data_is_what_the_writer_makes(split: Split) -> None:
    conversations, pictures = sample_split(split, built_seed(), count=12)
    records = records_of(split)
    for index, (conversation, picture) in enumerate(zip(conversations, pictures, strict=True)):
        assert records[index] == json.loads(json.dumps(to_record(conversation, split, index)))
        with Image.open(DATA_DIR / records[index]["image"]) as shipped:
            assert np.array_equal(np.asarray(shipped), picture)


def test_writer_writes_what_it_samples(tmp_path: Path) -> None:
    write_split(tmp_path, "test", seed=3, count=2)
    conversations, pictures = sample_split("test", 3, 2)
    written = json.loads((tmp_path / "test.json").read_text())
    assert written == [to_record(item, "test", i) for i, item in enumerate(conversations)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / written[1]["image"])), pictures[1])


def test_shipped_files_are_small() -> None:
    files = [path for folder in (DATA_DIR, MODEL_DIR, SECOND_MODEL_DIR) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 18 * 2**20
    assert max(path.stat().st_size for path in files) <= 4 * 2**20
