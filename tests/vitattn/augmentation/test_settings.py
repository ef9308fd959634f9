"""The keys of sharper augmentation: off by default, and refused where they cannot work."""

import pytest

import configs
from trainlib.errors import ConfigError
from vitattn.augmentation import settings
from vitattn.config import check

DIGITS = "resnet50:digits"


def loaded(name=DIGITS, **values):
    return configs.load(name, **{"data." + key: value for key, value in values.items()})


def test_all_of_it_is_off_by_default():
    assert settings.chosen(loaded().data, 0) == settings.OFF
    assert loaded().data.repeats == 1
    assert not settings.mixes(loaded().data)


def test_what_a_configuration_asks_for():
    config = loaded(
        mixup=0.1,
        cutmix=1.0,
        rand_augment=2,
        rand_augment_magnitude=7,
        rand_augment_deviation=0.5,
        erase=0.25,
    )
    check(config, 1)
    chosen = settings.chosen(config.data, 3)
    assert chosen.rand_augment == settings.RandAugment(2, 7.0, 0.5)
    assert chosen.erasing == settings.Erasing(0.25, (0.02, 0.4), (0.3, 3.3), "pixel")
    assert chosen.mixing == settings.Mixing(0.1, 1.0, 1.0, 0.5, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixup": -0.2}, ["data.mixup", "0.001", "0 for off"]),
        ({"cutmix": -1.0}, ["data.cutmix", "0 for off"]),
        ({"mix_probability": 1.5}, ["data.mix_probability"]),
        ({"rand_augment_magnitude": 15}, ["data.rand_augment_magnitude", "0 to 10"]),
        ({"erase_fill": "noise"}, ["data.erase_fill", "pixel, constant"]),
        ({"erase_area": (0.0, 0.3)}, ["data.erase_area", "above 0"]),
        ({"repeats": 0}, ["data.repeats"]),
    ],
)
def test_a_value_out_of_range(values, words):
    with pytest.raises(ConfigError) as error:
        loaded(**values)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("values", "batch_size", "words"),
    [
        ({"repeats": 5}, 96, ["data.repeats=5", "--config.batch_size=95"]),
        ({"mixup": 0.2}, 33, ["data.mixup=0.2", "33 images", "multiple of 2"]),
        ({"cutmix": 1.0, "repeats": 4}, 4, ["data.cutmix=1", "with itself"]),
        ({"erase_area": (0.5, 0.1), "erase": 0.5}, 96, ["data.erase_area=0.1,0.5"]),
        ({"erase_aspect": (2.0, 1.0)}, 96, ["data.erase_aspect=1,2"]),
        ({"mix_probability": 0.5}, 96, ["changes nothing while data.mixup=0 and data.cutmix=0"]),
        ({"rand_augment_magnitude": 5.0}, 96, ["data.rand_augment=0", "data.rand_augment,"]),
        ({"erase_fill": "constant"}, 96, ["--config.data.erase", "or leave data.erase_fill"]),
        ({"mixup": 0.2, "cutmix_probability": 0.3}, 96, ["not both on"]),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(values, batch_size, words):
    config = loaded(**values)
    config.batch_size = batch_size
    with pytest.raises(ConfigError) as error:
        check(config, 1)
    assert all(word in str(error.value) for word in words), error.value


def test_every_host_needs_pairs():
    with pytest.raises(ConfigError, match=r"3 images of each of 2 hosts.*multiple of 4"):
        settings.check(loaded(mixup=0.2).data, 6, 2)


def test_detectors_have_none_of_these_keys():
    with pytest.raises(ConfigError, match=r"data\.mixup"):
        loaded("retinanet_resnet50:shapes", mixup=0.2)
