import csv
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from helpers import make_bundle, make_spec
from safetensors.torch import save_file
from torch import distributed
from torch.nn import functional as F
from torch.utils.data import Dataset

from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.errors import InvalidInput, WeightsError
from DeepLabSegLib.image import Segment
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.training.curves import Curves
from DeepLabSegLib.training.initial import begin_with
from DeepLabSegLib.training.losses import dice_cross_entropy
from DeepLabSegLib.training.processes import Processes, _fails_first, joined_processes
from DeepLabSegLib.training.spec import OPTIMIZERS, TrainingSpec
from DeepLabSegLib.training.trainer import MAX_GRADIENT, _Indices, train


class BrightFromDark(Dataset):
    """Blobs, and where they are bright: something that a small network learns in a few steps."""

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        image = F.interpolate(torch.randn(1, 1, *(4,) * self.dims, generator=generator), size=(32,) * self.dims)[0]
        return image, (image[0] > 0).long()


class Exploding(BrightFromDark):
    """Images that hold no numbers."""

    def __init__(self) -> None:
        super().__init__(2)

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return image * float("inf"), target


SPEC = TrainingSpec(steps=12, batch_size=2, learning_rate=5e-3, average=0.5, validate_every=5, checkpoint_every=4)


def network(dims: int) -> DeepLabV3Plus:
    torch.manual_seed(1)
    return DeepLabV3Plus.from_spec(make_spec(dims, 2))


def agreement(trained: DeepLabV3Plus) -> dict[str, float]:
    dims = trained.spec.dims
    image, target = BrightFromDark(dims)[10**6]
    return {"Dice": float((trained(image[None]).argmax(1)[0] == target).float().mean())}


class Killed(Exception):
    """Stands for a power cut."""


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_zero_for_certainty_and_large_for_error(dims):
    target = torch.randint(0, 3, (2, *(8,) * dims))
    sure = F.one_hot(target, 3).movedim(-1, 1) * 100.0
    assert float(dice_cross_entropy(sure, target)) == pytest.approx(0, abs=1e-4)
    assert float(dice_cross_entropy(sure.roll(1, 1), target)) > 50


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_cross_entropy_and_what_the_dice_of_all_windows_together_lacks(dims):
    scores, target = torch.randn(2, 3, *(6,) * dims), torch.randint(0, 3, (2, *(6,) * dims))
    target[0] = 1  # windows of different classes
    found, wanted = scores.softmax(1), torch.stack([target == n for n in range(3)], 1)
    dice = [
        (2 * float(f[w].sum()) + 1) / (float(f.sum() + w.sum()) + 1)
        for f, w in zip(found.unbind(1), wanted.unbind(1), strict=True)
    ]
    expected = float(F.cross_entropy(scores, target)) + 1 - np.mean(dice)
    assert float(dice_cross_entropy(scores, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_of_coarse_scores_is_that_of_the_enlarged_ones(dims):
    coarse = torch.randn(2, 3, *(5, 4, 3)[:dims])
    target = torch.randint(0, 3, (2, *(17, 16, 9)[:dims]))
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    enlarged = F.interpolate(coarse, size=target.shape[1:], mode=mode, align_corners=False)
    torch.testing.assert_close(dice_cross_entropy(coarse, target), dice_cross_entropy(enlarged, target))
    start = (1, 0, 1)[:dims]
    some = (slice(None), *(slice(first, None, 2) for first in start))
    torch.testing.assert_close(
        dice_cross_entropy(coarse, target, every=2, start=start),
        dice_cross_entropy(enlarged[(slice(None), *some)], target[some]),
    )
    assert dice_cross_entropy(coarse, target, every=50, start=(49,) * dims).isfinite()  # one voxel of each axis


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_training_learns_bright_from_dark(dims, tmp_path):
    losses = []
    trained = train(
        network(dims), BrightFromDark(dims), replace(SPEC, steps=30), tmp_path, on_step=lambda _, x: losses.append(x)
    )
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    assert trained.step == 30
    with torch.inference_mode():
        assert agreement(trained.network)["Dice"] > 0.7


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_killed_training_goes_on_with_the_same_curve(dims, precision, tmp_path):
    spec = replace(SPEC, precision=precision, every=2)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = train(network(dims), BrightFromDark(dims), spec, tmp_path / "whole", validate=agreement)

    def kill(step: int, _: float) -> None:
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        train(network(dims), BrightFromDark(dims), spec, tmp_path / "killed", validate=agreement, on_step=kill)
    steps = []
    resumed = train(
        network(dims),
        BrightFromDark(dims),
        replace(spec, workers=0),
        tmp_path / "killed",
        validate=agreement,
        on_step=lambda step, _: steps.append(step),
    )
    assert steps == [9, 10, 11, 12]
    assert (tmp_path / "killed/curves.csv").read_text() == (tmp_path / "whole/curves.csv").read_text()
    assert resumed.scores == whole.scores
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0)


def test_the_table_has_a_row_per_step_and_the_picture_is_a_png(tmp_path):
    train(network(2), BrightFromDark(2), SPEC, tmp_path, validate=agreement)
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["Dice"]] == [5, 10, 12]
    first, *_, last = rates = [float(row["learning_rate"]) for row in rows]
    assert last < first < max(rates) == pytest.approx(SPEC.learning_rate, rel=0.1)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "names",
    [
        ["Liver"],
        ["\u809d\u81d3", "\u813e"],
        ["$x$", r"a $\foo$"],
        ["A name that goes on " * 10],
        [f"Part {n}" for n in range(100)],
    ],
    ids=["usual", "chinese", "dollars", "long", "many"],
)
def test_curves_of_classes_of_any_name_and_number_are_drawn_without_a_warning(names, tmp_path, recwarn):
    curves = Curves(tmp_path)
    for step in (1, 2):
        curves.add(step, {"loss": 1 / step, "learning_rate": 0.1, "mean Dice": 0.5} | dict.fromkeys(names, 0.4))
    curves.save()
    assert not recwarn.list
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        assert {*names} < {*next(csv.DictReader(file))}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_other_settings_says_which(tmp_path):
    about = {"data": {"a": "1", "b": "2", "c": "3"}, "labels": ["Liver"], "weights": None}
    train(network(2), BrightFromDark(2), replace(SPEC, steps=2), tmp_path, about=about)
    other = {"data": {"a": "1", "b": "0", "d": "4"}, "labels": ["Spleen"], "weights": "head-mri"}
    wider = DeepLabV3Plus.from_spec(replace(make_spec(2, 2), decoder_dilation_rates=(3, 6)))
    words = (
        r"checkpoint\.pt belongs to a training with other settings \(network: decoder_dilation_rates; steps 2, now 8; "
        r"seed 0, now 1; data: b, c, d; labels; weights None, now head-mri\); give those again"
    )
    with pytest.raises(InvalidInput, match=words):
        train(wider, BrightFromDark(2), replace(SPEC, steps=8, seed=1), tmp_path, about=other)
    train(network(2), BrightFromDark(2), replace(SPEC, steps=2, workers=0), tmp_path, about=about)


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_damaged_checkpoint_is_named(share, tmp_path):
    train(network(2), BrightFromDark(2), replace(SPEC, steps=2), tmp_path)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidInput, match=r"checkpoint\.pt is damaged \(.+\); delete it to begin anew"):
        train(network(2), BrightFromDark(2), replace(SPEC, steps=2), tmp_path)


def test_a_checkpoint_of_another_version_is_no_damaged_one(tmp_path):
    train(network(2), BrightFromDark(2), replace(SPEC, steps=2), tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**content, "identity": "5d41402abc4b2a76"}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        InvalidInput, match=r"checkpoint\.pt was made by another version .*; finish it with that one, or"
    ):
        train(network(2), BrightFromDark(2), replace(SPEC, steps=2), tmp_path)


def test_training_stops_early_without_a_gain_and_keeps_the_best(tmp_path):
    scores = iter((0.5, 0.9, 0.4, 0.3, 0.2, 0.1))
    steps, judged, own = [], [], network(2)

    def validate(averaged):
        assert not torch.equal(averaged.head.weight, own.head.weight)
        judged.append(averaged.head.weight.clone())
        return {"Dice": next(scores)}

    trained = train(
        own,
        BrightFromDark(2),
        replace(SPEC, steps=20, validate_every=2, patience=2),
        tmp_path,
        validate=validate,
        on_step=lambda step, _: steps.append(step),
    )
    assert steps[-1] == 8
    assert (trained.step, trained.scores) == (4, {"Dice": 0.9})
    assert [torch.equal(trained.network.head.weight, weight) for weight in judged] == [False, True, False, False]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [((0.5, 0.5, 0.5), 6), ((float("nan"), 0.2, float("nan")), 4), ((float("nan"),) * 3, 6), ((0.3, 0.2, 0.1), 2)],
)
def test_of_equal_scores_the_last_is_kept_and_none_is_worse_than_one_that_is_no_number(scores, kept, tmp_path):
    left = iter(scores)
    spec = replace(SPEC, steps=6, validate_every=2, workers=0)
    trained = train(network(2), BrightFromDark(2), spec, tmp_path, validate=lambda _: {"Dice": next(left)})
    assert trained.step == kept


def test_equal_scores_are_no_gain_also_where_a_training_was_cut_off_between_them(tmp_path):
    spec = replace(SPEC, steps=20, validate_every=2, checkpoint_every=4, patience=4, workers=0)
    steps = []

    def note(step: int, _: float) -> None:
        steps.append(step)
        if len(steps) == 5:
            raise Killed

    for end in (pytest.raises(Killed), nullcontext(), nullcontext()):
        with end:
            train(network(2), BrightFromDark(2), spec, tmp_path, validate=lambda _: {"Dice": 0.5}, on_step=note)
    assert steps == [*range(1, 6), *range(5, 11)], "what has stopped stays so"


def test_unless_it_is_said_a_training_is_validated_a_dozen_times(tmp_path):
    judged = []
    spec = replace(SPEC, steps=24, validate_every=None, workers=0)
    train(network(2), BrightFromDark(2), spec, tmp_path, validate=lambda _: {"Dice": judged.append(0) or 0.5})
    assert len(judged) == 12


def test_the_average_follows_the_weights_more_closely_at_first(tmp_path):
    own, seen = network(2), []
    spec = replace(SPEC, steps=4, average=0.28, learning_rate=0.05, workers=0)
    averaged = train(
        own, BrightFromDark(2), spec, tmp_path, on_step=lambda *_: seen.append(own.head.weight.detach().clone())
    ).network
    expected = seen[0]
    for weight, kept in zip(seen[1:], (2 / 11, 3 / 12, 0.28), strict=True):
        expected = kept * expected + (1 - kept) * weight
    torch.testing.assert_close(averaged.head.weight, expected)


def test_a_steep_loss_makes_no_leap(tmp_path):
    own = network(2)
    own.head.weight.data *= 1e4
    before = [weights.detach().clone() for weights in own.parameters()]
    spec = replace(SPEC, steps=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, workers=0)
    train(own, BrightFromDark(2), spec, tmp_path)
    moved = [(weights.detach() - old).flatten() for weights, old in zip(own.parameters(), before, strict=True)]
    first = 1.99 * MAX_GRADIENT  # of Nesterov's steps, with a momentum of 0.99
    assert float(torch.cat(moved).norm()) == pytest.approx(0.01 * first, rel=1e-2)


def test_where_the_loss_counts_not_every_voxel_each_has_its_turn(tmp_path, monkeypatch):
    starts = set()

    def note(coarse, target, every, start):
        starts.add(tuple(start))
        return dice_cross_entropy(coarse, target, every, start)

    monkeypatch.setattr("DeepLabSegLib.training.trainer.dice_cross_entropy", note)
    train(network(2), BrightFromDark(2), replace(SPEC, steps=24, every=2, workers=0), tmp_path)
    assert starts == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_both_optimizers_lower_the_loss(optimizer, tmp_path):
    losses = []
    spec = replace(SPEC, steps=24, optimizer=optimizer, learning_rate=None)
    train(network(2), BrightFromDark(2), spec, tmp_path, on_step=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_takes_rate_and_decay_that_are_given_and_slows_down_over_all_steps(optimizer):
    spec = replace(SPEC, steps=20, optimizer=optimizer, learning_rate=0.5, weight_decay=0.0)
    made, schedule = OPTIMIZERS[optimizer](network(2), spec)
    rates = []
    for _ in range(spec.steps):
        rates += schedule.get_last_lr()
        made.step()
        schedule.step()
    assert made.param_groups[0]["weight_decay"] == 0
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert 0 < rates[-1] == min(rates) < 0.05


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_a_run_of_any_length_ends(steps, tmp_path):
    assert train(network(2), BrightFromDark(2), replace(SPEC, steps=steps, workers=0), tmp_path).step == steps


def test_a_kill_between_curves_and_checkpoint_leaves_no_hole(tmp_path, monkeypatch):
    def fail(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(Killed):
            train(network(2), BrightFromDark(2), replace(SPEC, workers=0), tmp_path)
    train(network(2), BrightFromDark(2), replace(SPEC, workers=0), tmp_path)
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 13))


@pytest.mark.parametrize("text", ["", "step;loss\n1;0,5\n", "step,loss\n1,good\n"])
def test_curves_that_another_program_saved_are_named(text, tmp_path):
    train(network(2), BrightFromDark(2), SPEC, tmp_path)
    (tmp_path / "curves.csv").write_text(text, encoding="utf-8")
    if text:
        with pytest.raises(InvalidInput, match=r"curves\.csv is damaged .* delete it"):
            train(network(2), BrightFromDark(2), SPEC, tmp_path)
        (tmp_path / "curves.csv").unlink()
    assert train(network(2), BrightFromDark(2), SPEC, tmp_path).step == SPEC.steps


def test_what_a_kill_left_of_a_checkpoint_is_deleted(tmp_path):
    with replacing(tmp_path / "checkpoint.pt") as half:
        half.write_bytes(b"whole")
    half.write_bytes(b"half")
    (tmp_path / "checkpoint.pt").unlink()
    train(network(2), BrightFromDark(2), SPEC, tmp_path)
    assert not half.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "enough memory on CPU to train with 2 windows"),
        (MemoryError(), "enough memory on CPU to train with 2 windows"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "or 0 workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "or 0 workers"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "mat1 and mat2"),
    ],
)
def test_memory_that_runs_out_is_told_with_the_remedy(error, words, tmp_path):
    class Failing(BrightFromDark):
        def __getitem__(self, index):
            raise error

    with pytest.raises(RuntimeError if "mat1" in words else InvalidInput, match=words):
        train(network(2), Failing(2), replace(SPEC, workers=0), tmp_path)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    spec = replace(SPEC, workers=0)
    with pytest.raises(InvalidInput, match=r"the loss is (nan|inf) at step"):
        train(network(2), Exploding(), spec, tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_processes_see_together_what_one_would_from_where_a_training_was_cut_off(count):
    spec = replace(SPEC, steps=3, batch_size=6)
    shares = [[*_Indices(spec, Processes(rank, count, torch.device("cpu")), 1)] for rank in range(count)]
    assert [[*chain(*step)] for step in zip(*shares, strict=True)] == [[*range(6, 12)], [*range(12, 18)]]


def test_processes_must_share_a_batch_evenly(tmp_path):
    with pytest.raises(InvalidInput, match="batch_size is 3, which 2 processes can't share evenly"):
        train(
            network(2), BrightFromDark(2), replace(SPEC, batch_size=3), tmp_path, Processes(0, 2, torch.device("cpu"))
        )


class InterruptedStore:
    """A store in which a signal comes with the answer to the first question, as torchrun sends it to the others."""

    def __init__(self, store):
        self.store = store
        self.signals = [KeyboardInterrupt]

    def compare_set(self, *values):
        answer = self.store.compare_set(*values)
        if self.signals:
            raise self.signals.pop()
        return answer


def test_of_processes_that_fail_one_alone_is_the_first_whenever_torchrun_ends_the_others():
    store = distributed.HashStore()
    assert [_fails_first(InterruptedStore(store), rank) for rank in (1, 0, 2)] == [True, False, False]


def test_a_process_more_than_there_are_gpus_says_how_many_to_start(monkeypatch):
    store = distributed.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=r"process 2 .* has 1 GPU, .* --nproc-per-node 1"), joined_processes():
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("average", 1.0),
        ("keep", 1.5),
        ("learning_rate", -1.0),
        ("patience", 0),
        ("optimizer", "adam"),
        ("workers", -1),
        ("seed", -1),
        ("weight_decay", -1e-4),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(InvalidInput, match=f"{name} is"):
        TrainingSpec(**{name: value})


@pytest.mark.parametrize("dims", [2, 3])
def test_a_share_of_the_weights_begun_with_can_be_kept(dims, tmp_path):
    spec = replace(SPEC, validate_every=None)
    first = network(dims).state_dict()
    for name in ("plain", "mixed"):
        (tmp_path / name).mkdir()
    plain = train(network(dims), BrightFromDark(dims), spec, tmp_path / "plain").network.state_dict()
    mixed = train(network(dims), BrightFromDark(dims), replace(spec, keep=0.25), tmp_path / "mixed").network
    for name, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * plain[name] + 0.25 * first[name])


# --- weights to begin with -------------------------------------------------------------------------------------------


def named(*names: str) -> tuple[Segment, ...]:
    return tuple(Segment(n, name, (0, 0, 0)) for n, name in enumerate(names, 1))


def save_donor(path, dims: int, activation: str = "softmax", classes: int = 3) -> DeepLabV3Plus:
    """A model of the labels Part 1 and Part 2; its network."""
    torch.manual_seed(2)
    bundle = make_bundle(dims, classes, activation)
    donor = DeepLabV3Plus.from_spec(bundle.network)
    save_bundle(path, bundle, donor, half=False)
    return donor


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("donor_dims", "dims"), [(2, 2), (3, 3), (2, 3)])
def test_a_class_begins_with_the_weights_of_its_namesake(donor_dims, dims, keep, tmp_path):
    donor = save_donor(tmp_path / "donor", donor_dims).head
    begun = DeepLabV3Plus.from_spec(make_spec(dims, 3))
    assert begin_with(begun, str(tmp_path / "donor"), named("Part 2", "part 1 "), keep).startswith("96 of 96 tensors")
    torch.testing.assert_close(begun.head.weight.flatten(1), donor.weight.flatten(1)[[0, 2, 1]])
    torch.testing.assert_close(begun.head.bias, donor.bias[[0, 2, 1]])


def test_a_2d_model_sees_a_volume_slice_by_slice_at_first(tmp_path):
    flat = save_donor(tmp_path / "donor", 2).state_dict()
    begun = DeepLabV3Plus.from_spec(make_spec(3, 3))
    begin_with(begun, str(tmp_path / "donor"), named("Part 1", "Part 2"))
    kernels = {name: value for name, value in begun.state_dict().items() if value.ndim == 5 and value.shape[2] == 3}
    assert kernels
    for name, kernel in kernels.items():
        assert torch.equal(kernel[:, :, 1], flat[name])
        assert not kernel[:, :, [0, 2]].any()


def test_a_3d_model_is_no_beginning_for_a_2d_network(tmp_path):
    save_donor(tmp_path / "donor", 3)
    with pytest.raises(WeightsError, match="is a 3D model, whose kernels don't fit into a 2D network"):
        begin_with(network(2), str(tmp_path / "donor"), named("Part 1"))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_class_without_a_namesake_begins_fresh_and_nothing_of_it_can_be_kept(dims, tmp_path):
    donor = save_donor(tmp_path / "donor", dims).head
    begun = DeepLabV3Plus.from_spec(make_spec(dims, 3))
    fresh = begun.head.weight.detach().clone()
    words = begin_with(begun, str(tmp_path / "donor"), named("Cyst", "Part 1"))
    assert words.endswith("donor, which has no Cyst")
    torch.testing.assert_close(begun.head.weight[[0, 2]], donor.weight[[0, 1]])
    torch.testing.assert_close(begun.head.weight[1], fresh[1])
    with pytest.raises(WeightsError, match=r"has the labels Part 1, Part 2, and these data Cyst, Part 1, so that keep"):
        begin_with(begun, str(tmp_path / "donor"), named("Cyst", "Part 1"), whole=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_of_other_dilation_rates_are_said_to_be_that_and_none_of_them_can_be_kept(dims, tmp_path):
    save_donor(tmp_path / "donor", dims)
    begun = DeepLabV3Plus.from_spec(replace(make_spec(dims, 3), decoder_dilation_rates=(1, 2)))
    labels = named("Part 1", "Part 2")
    words = begin_with(begun, str(tmp_path / "donor"), labels)
    assert words.endswith("donor; its network has decoder_dilation_rates (2, 4), and the model (1, 2)")
    with pytest.raises(
        WeightsError, match=r"rates \(2, 4\).* so that keep would mix the weights of different networks"
    ):
        begin_with(begun, str(tmp_path / "donor"), labels, whole=True)


def test_scores_that_do_not_exclude_each_other_are_no_beginning_for_those_that_do(tmp_path):
    save_donor(tmp_path / "donor", 2, "sigmoid", classes=2)  # two labels, and no background
    begun = network(2)
    before = begun.head.weight.detach().clone()
    begin_with(begun, str(tmp_path / "donor"), named("Part 1"))
    torch.testing.assert_close(begun.head.weight, before)
    with pytest.raises(WeightsError, match="has 94 of the network's 96 tensors"):
        begin_with(begun, str(tmp_path / "donor"), named("Part 1"), whole=True)


@pytest.mark.parametrize(("file_dims", "dims"), [(2, 2), (3, 3), (2, 3)])
def test_a_weights_file_that_does_not_fit_is_told_in_its_own_dimensions(file_dims, dims, tmp_path):
    torch.manual_seed(2)
    donor = DeepLabV3Plus.from_spec(make_spec(file_dims, 2)).state_dict()
    save_file(donor, tmp_path / "donor.safetensors")
    assert begin_with(network(dims), str(tmp_path / "donor.safetensors"), named("Part 1")).startswith("96 of 96")
    other = DeepLabV3Plus.from_spec(make_spec(dims, 5))
    kernel = ", ".join("1" * file_dims)
    with pytest.raises(WeightsError, match=rf"head\.weight.*\(2, 16, {kernel}\).*\(5, 16, {kernel}\)"):
        begin_with(other, str(tmp_path / "donor.safetensors"), named(*"ABCD"))
