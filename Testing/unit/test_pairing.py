import re
from pathlib import Path

import pytest

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.pairing import match, pair_files


def paths(text: str) -> list[Path]:
    return [Path(name) for name in text.split()]


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        ("a.seg.nrrd b.nii.gz", "b.png a.nii", {"a.seg.nrrd": "a.nii", "b.nii.gz": "b.png"}),
        ("a_seg.nii.gz", "a-label.nrrd", {"a_seg.nii.gz": "a-label.nrrd"}),
        ("a.nii b.nii", "a_0000.nii b_0000.nii", {"a.nii": "a_0000.nii", "b.nii": "b_0000.nii"}),
        ("a_T1.nii b.nii", "b_atlas.nii a_T1_atlas.nii", {"a_T1.nii": "a_T1_atlas.nii", "b.nii": "b_atlas.nii"}),
        ("a_net.nii", "a.nii", {"a_net.nii": "a.nii"}),
        ("a.v1.nii", "a.v1.seg.nrrd", {"a.v1.nii": "a.v1.seg.nrrd"}),
    ],
)  # fmt: skip
def test_names_meet_whatever_their_ending_and_their_part(ours, theirs, pairs):
    assert {a.name: b.name for a, b in match(paths(ours), paths(theirs)).items()} == pairs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("case1.nii", "case10.nii"),
        ("case.nii", "case_2.nii"),
        ("case_1.nii", "case_2.nii"),
        ("a_pre.nii", "a_post.nii"),
        ("a.nii b.nii", "a_pre.nii b_post.nii"),
    ],
)
def test_names_of_different_cases_never_meet(ours, theirs):
    assert match(paths(ours), paths(theirs)) == {}


def test_an_exact_name_goes_before_a_similar_one():
    found = match(paths("a.nii a_seg.nii"), paths("a_seg.nii.gz a.nii.gz"))
    assert {a.name: b.name for a, b in found.items()} == {"a.nii": "a.nii.gz", "a_seg.nii": "a_seg.nii.gz"}


def test_a_name_that_fits_several_files_is_refused():
    several = paths("x/a.nii x/a.nrrd")
    with pytest.raises(InvalidInput, match="open which.*" + ".*".join(re.escape(str(path)) for path in several)):
        match(paths("a.nii"), several)


def test_files_are_paired_in_their_order_and_folders_by_name(tmp_path):
    for name in ("ours/b.nii", "ours/a.nii", "ours/c.nii", "theirs/a_seg.nii", "theirs/b_seg.nii", "theirs/d_seg.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ours" / "report.csv").touch()
    (tmp_path / "ours" / ".hidden-a.nii").touch()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    found = pair_files([ours], [theirs], [ours / "b.nii", ours / "a.nii"])
    assert [(pair.name, pair.reference.name) for pair in found.pairs] == [("a", "a_seg.nii"), ("b", "b_seg.nii")]
    assert [path.name for path in found.without_reference] == ["c.nii"]
    assert [path.name for path in found.without_prediction] == ["d_seg.nii"]
    in_order = pair_files([ours / "a.nii", ours / "b.nii"], [theirs / "b_seg.nii", theirs / "a_seg.nii"])
    assert [(pair.name, pair.reference.name) for pair in in_order.pairs] == [("a", "b_seg.nii"), ("b", "a_seg.nii")]


def test_scans_are_found_by_the_name_of_either_side(tmp_path):
    for name in ("p1.nii", "p2.nii", "r1.nii", "r2.nii", "scans/p1.nii", "scans/r2.png", "scans/other.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ours, theirs = ([tmp_path / f"{side}{n}.nii" for n in (1, 2)] for side in "pr")
    found = pair_files(ours, theirs, [tmp_path / "scans"])
    assert [pair.image.name for pair in found.pairs] == ["p1.nii", "r2.png"]


def test_scans_of_folders_are_never_taken_in_their_order(tmp_path):
    for name in ("ours/a.nii", "ours/b.nii", "ours/c.nii", "theirs/a.nii", "theirs/c.nii", "a.nii", "b.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pair_files([tmp_path / "ours"], [tmp_path / "theirs"], [tmp_path / "a.nii", tmp_path / "b.nii"])
    assert [(pair.name, pair.image) for pair in found.pairs] == [("a", tmp_path / "a.nii"), ("c", None)]
    ours, theirs = ([getattr(pair, side) for pair in found.pairs] for side in ("prediction", "reference"))
    for scans in ([tmp_path / "b.nii", tmp_path / "a.nii"], [tmp_path / "a.nii"]):
        found = pair_files(ours, theirs, scans)
        assert [pair.image for pair in found.pairs] == (scans if len(scans) == 2 else [*scans, None])


def test_segmentations_beside_the_scans_are_not_taken_for_scans(tmp_path):
    for name in ("ours/a.seg.nrrd", "theirs/a.nii", "scans/a.nii", "scans/a.seg.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (pair,) = pair_files([tmp_path / "ours"], [tmp_path / "theirs"], [tmp_path / "scans"]).pairs
    assert pair.image == tmp_path / "scans" / "a.nii"


@pytest.mark.parametrize("drawn", ["a.seg.nrrd", "a-segmentation.seg.nrrd"])
def test_scans_beside_the_segmentations_that_were_drawn_on_them_are_none_themselves(drawn, tmp_path):
    for name in ("ours/a.seg.nrrd", "ours/a.nrrd", "ours/b.seg.nrrd", f"scans/{drawn}", "scans/a.nrrd", "scans/b.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pair_files([tmp_path / "ours"], [tmp_path / "scans"], [tmp_path / "scans"])
    assert [pair.prediction.name for pair in found.pairs] == ["a.seg.nrrd", "b.seg.nrrd"]
    assert [pair.reference.name for pair in found.pairs] == [drawn, "b.nii"]
    assert [pair.image.name for pair in found.pairs] == ["a.nrrd", "b.nii"]
    given = pair_files([tmp_path / "ours" / "a.seg.nrrd"], [tmp_path / "scans" / "a.nrrd"])
    assert given.pairs[0].reference.name == "a.nrrd", "what is given by itself is taken"


def test_files_of_one_name_in_several_folders_are_told_apart():
    found = pair_files(["x/a.nii", "y/a.nii", "y/z/a.nii", "z/a.nii"], ["1.nii", "2.nii", "3.nii", "4.nii"])
    assert [pair.name for pair in found.pairs] == ["x-a", "y-a", "z-a", "z-a-2"]


def test_a_folder_that_does_not_exist_is_named_on_every_side(tmp_path):
    for name in ("ours/a.nii", "theirs/a.nii"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    ours, theirs, gone = [tmp_path / "ours"], [tmp_path / "theirs"], [tmp_path / "gone"]
    for sides in ((gone, theirs), (ours, gone), (gone, gone), (ours, theirs, gone)):
        with pytest.raises(InvalidInput, match="gone does not exist; check the path"):
            pair_files(*sides)


def test_folders_that_have_nothing_in_common_are_refused(tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(InvalidInput, match="no file that can be read"):
        pair_files([tmp_path / "ours"], [tmp_path / "ours"])
    (tmp_path / "ours" / "a.nii").touch()
    with pytest.raises(InvalidInput, match="no prediction has a reference of its name"):
        pair_files([tmp_path / "ours"], ["b.nii"])
