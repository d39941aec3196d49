# SPDX-License-Identifier: Apache-2.0
"""Checks of sections and runs whose settings contradict each other, where a training would find out only after hours.

Each sentence names both keys and what to type. Modules that compute check the same again, because they are used without
params.yaml too.
"""

from __future__ import annotations

from typing import Any, Protocol

from eldistill.plan import added_losses, guidance, sizes, students, unets
from eldistill.plan.schema import Wrong, refuse_unknown
from eldistill.registry import defines, literal, setting_fields, spaces

Section = dict[str, Any]
FAKE_SCORE = "fake_score"
EDM = {"mean": 0.5, "std": 0.25}  # codec of published networks of pixels


class Sections(Protocol):
    """The part of params.Params that these checks use."""

    values: dict[str, Any]

    def peek(self, kind: str, name: str, data: str | None = None) -> Section: ...
    def place(self, kind: str, name: str) -> str: ...
    def top(self, name: str, data: str | None = None) -> Any: ...
    def has_numbers(self, method: str, data: str) -> bool: ...


# --- data and teachers ----------------------------------------------------------------------------------


def check_data(where: str, data: Section) -> None:
    """Raise Wrong at numbers of a resolved data setting that do not fit its source, or each other."""
    if (most := sizes.most_heldout(data)) and data["heldout"] > most[0]:
        raise Wrong(f"{where}.heldout", f"is {data['heldout']}, but {most[1]}; set it to at most {most[0]}")
    judges = data["judges"]
    if judges["n_images"] < judges["batch"]:
        raise Wrong(
            f"{where}.judges.n_images",
            f"is {judges['n_images']} and judges.batch is {judges['batch']}, so that a judge would not be trained at all; raise "
            "n_images, or lower batch",
        )


def check_teacher(params: Sections, where: str, teacher: Section) -> None:
    """Raise Wrong if a resolved teacher does not fit the images of its data setting, or if its numbers contradict each other."""
    data = params.peek("data", teacher["data"])
    if "network" in teacher:
        unets.check_network(f"{where}.network", teacher["network"], sizes.side_of(data))
        file = teacher["network"]["network"]
        if teacher["augment"] and "augment_dim" not in setting_fields(file):
            raise Wrong(
                f"{where}.augment",
                f"is {teacher['augment']}, but network: {file} takes no augmentation labels; set augment to 0, or network to song or adm",
            )
    if teacher["label_dropout"] and not data["labels"]:
        raise Wrong(
            f"{where}.label_dropout",
            f"is {teacher['label_dropout']:g}, but data.{teacher['data']} has no labels; set it to 0, or labels to true",
        )
    if teacher["state"] is not None:
        _state(where, teacher["state"], teacher["data"], data)
    if teacher["source"] is not None:
        _published(where, teacher, data)
    _check_of_teacher(f"{where}.check", teacher["check"])


def _state(where: str, state: Section, name: str, data: Section) -> None:
    if "num_head_channels" in state and "num_heads" in state:
        raise Wrong(
            f"{where}.state", "has num_head_channels and num_heads, of which a network has one; remove the other"
        )
    side = sizes.side_of(data)
    if side is not None and state["img_resolution"] != side:
        raise Wrong(
            f"{where}.state.img_resolution",
            f"is {state['img_resolution']}, but data.{name} has images of {side} pixels a side; make them equal",
        )


def _published(where: str, teacher: Section, data: Section) -> None:
    facts, name = sizes.row_facts(teacher["source"]), teacher["data"]
    here = {"resolution": sizes.side_of(data), "channels": sizes.channels_of(data), "labels": data["labels"]}
    words = {"resolution": "{} pixels a side", "channels": "{} channels", "labels": "labels: {}"}
    for key, value in here.items():
        if value is not None and facts.get(key, value) != value:
            made, ours = (words[key].format(str(each).lower()) for each in (facts[key], value))
            raise Wrong(
                f"{where}.source",
                f"is {teacher['source']}, a network for images with {made}, but data.{name} has {ours}; choose a network that was "
                f"trained on such images, or change data.{name}",
            )
    codec = {key: data["codec"][key] for key in ("mean", "std")}
    if facts.get("channels") == 3 and codec != EDM:
        raise Wrong(
            f"data.{name}.codec",
            f"is {codec}, but its teacher has source: {teacher['source']}, which was trained on pixels on [-1, 1]; set codec to "
            "{mean: 0.5, std: 0.25}",
        )


def _check_of_teacher(where: str, check: Section) -> None:
    if check["features"] is not None and check["features"] not in spaces():
        refuse_unknown(f"{where}.features", check["features"], spaces())
    if check["reference"] is not None and check["features"] not in (None, "inception"):
        raise Wrong(
            f"{where}.reference",
            f"is {check['reference']}, statistics of Inception's features, but features is {check['features']}; remove one of them",
        )
    churn = check["churn"]
    if churn and churn["s_min"] > churn["s_max"]:
        raise Wrong(
            f"{where}.churn.s_min", f"is {churn['s_min']:g} and s_max {churn['s_max']:g}; expected s_min below s_max"
        )


def _shapes(params: Sections, name: str, data: Section) -> None:
    # Whether a data setting and the one that its teacher was trained on have images of one size. Only runs need it: a setting
    # that provides the pixels of latents names a teacher that nobody uses.
    teacher = params.peek("teacher", data["teacher"])
    other = params.peek("data", teacher["data"])
    for what, of in (("pixels a side", sizes.side_of), ("channels", sizes.channels_of)):
        mine, its = of(data), of(other)
        if None not in (mine, its) and mine != its:
            raise Wrong(
                f"data.{name}.teacher",
                f"is {data['teacher']}, which is trained on data.{teacher['data']} with {its} {what}, but data.{name} has {mine}; "
                "give it a teacher of its own, or make the sizes equal",
            )


# --- evaluation -----------------------------------------------------------------------------------------


def check_evaluation(params: Sections, name: str) -> None:
    """Raise Wrong if a data setting has too few images for what `evaluate` measures on them."""
    options, data = params.top("evaluate", name), params.peek("data", name)
    data = params.peek("data", data["pixels"]) if data["pixels"] else data
    k, counts = options["neighbours"], {f"evaluate.{key} on {name}": options[key] for key in ("n", "neighbours_n")}
    counts |= {f"evaluate.n_of.{space} on {name}": n for space, n in options["n_of"].items()}
    counts |= {f"data.{name}.heldout": data["heldout"]}
    if (train := sizes.fewest_train(data)) is not None:
        counts |= {f"data.{name}.{'limit' if data['limit'] else 'source'}, the train images,": train}
    for key, n in counts.items():
        if n <= k:
            raise Wrong(
                key, f"is {n}, but evaluate.neighbours is {k}, and precision and recall need more images than neighbours; raise the "
                "former, or lower evaluate.neighbours")  # fmt: skip
    for space, n in options["n_of"].items():
        if n > options["n"]:
            raise Wrong(
                f"evaluate.n_of.{space} on {name}",
                f"is {n}, but evaluate.n is {options['n']}, from which they are taken; lower the former, or raise evaluate.n",
            )


# --- runs -----------------------------------------------------------------------------------------------


def check_run(params: Sections, data: str, method: str, supplements: tuple[str, ...]) -> None:
    """Raise Wrong if the method, the supplements and the data setting of a run contradict each other."""
    base, setting = params.peek("method", method, data), params.peek("data", data)
    added = {name: params.peek("supplement", name, data) for name in supplements}
    run = f"{data}/{method}/{'+'.join(supplements) or 'none'}"
    _shapes(params, data, setting)
    _method(params, params.place("method", method), base, data, setting)
    _start(params, params.place("method", method), base, data)
    _gan(params, run, method, base, added)
    for name, each in added.items():
        place = params.place("supplement", name)
        added_losses.check_supplement(params, place, each, base, data, setting)
        if each.get("lpips") and setting["source"] == "latents":
            raise Wrong(
                f"{place}.lpips",
                f"is {each['lpips']}, but LPIPS sees pixels and data.{data} has latents; set lpips to null",
            )


def trains_fake_score(method: Section) -> bool:
    """Whether a method trains a fake_score: its module has a loss of further networks, and names no others in CRITICS."""
    file = f"methods/{method['file']}"
    return defines(file, "critic_terms") and FAKE_SCORE in literal(file, "CRITICS", (FAKE_SCORE,))


def has_discriminator(file: str) -> bool:
    """Whether a method or supplement brings a discriminator: networks of its own, and a loss that trains them with fake_score."""
    trained = literal(file, "CRITICS", (FAKE_SCORE,))
    return defines(file, "networks", imported=False) and defines(file, "critic_terms") and FAKE_SCORE in trained


def _method(params: Sections, where: str, base: Section, data: str, setting: Section) -> None:
    where = f"{where} on {data}"
    if base["batch"] % base.get("group", 1):
        raise Wrong(
            f"{where}: group",
            f"is {base['group']} and batch {base['batch']}, which is no multiple of it; set group to a divisor of the batch",
        )
    if "low" in base and "high" in base and base["low"] >= base["high"]:
        raise Wrong(f"{where}: low", f"is {base['low']:g} and high {base['high']:g}; expected low below high")
    if "sigmas_2" in base:
        _consistency(where, base, data, setting)
    students.check_student(params, where, base, setting)
    _abilities(params, where, base, guidance.main_name(params, setting["teacher"]))


def _consistency(where: str, base: Section, data: str, setting: Section) -> None:
    # The numbers that a consistency model refuses at its start, and the weights of LPIPS.
    low, high = base.get("sigma_min", 0.0), base["sigma_max"]
    bound = f"sigma_min, which is {low:g}" if "sigma_min" in base else "0"
    for key, count in (("sigmas_2", 2), ("sigmas_4", 4)):
        levels = base[key]
        numbers = all(isinstance(each, int | float) for each in levels)
        if not numbers or len(levels) != count or levels != sorted(set(levels), reverse=True) or levels[-1] <= low:
            raise Wrong(
                f"{where}: {key}",
                f"is {levels}; expected {count} falling noise levels above {bound}",
            )
        if levels[0] != high:
            raise Wrong(
                f"{where}: {key}",
                f"starts at {levels[0]:g}, but sigma_max is {high:g}, the only level at which a generator learns to start from noise; "
                "make them equal",
            )
    for one, other in (("sigma_min", "sigma_max"), ("first", "last")):
        if one not in base or other not in base:
            continue
        if base[one] > base[other] or (one == "sigma_min" and low == high):
            raise Wrong(
                f"{where}: {one}", f"is {base[one]:g} and {other} {base[other]:g}; expected the former below the latter"
            )
    if "lpips" not in base:
        return
    if (base["lpips"] is None) != (base["distance"] != "lpips"):
        raise Wrong(
            f"{where}: lpips",
            f"is {'null' if base['lpips'] is None else base['lpips']} and distance {base['distance']}; give the file with the weights "
            "as lpips and set distance to lpips, or set lpips to null and distance to huber",
        )
    if base["lpips"] is not None and setting["source"] == "latents":
        raise Wrong(f"{where}: lpips", f"is {base['lpips']}, but LPIPS sees pixels and data.{data} has latents; set distance to huber "
                    "and lpips to null")  # fmt: skip


def _abilities(params: Sections, where: str, base: Section, name: str) -> None:
    # What a method asks of the teacher's network, where params.yaml says which network that is.
    teacher = params.peek("teacher", name)
    file, augmented = None, None
    if "network" in teacher:
        file, augmented = teacher["network"]["network"], teacher["augment"] > 0
    elif teacher["source"]:
        file = "edm2" if teacher["source"].startswith("edm2-") else "song or adm"
        augmented = sizes.row_facts(teacher["source"]).get("augmented")
    if base.get("augment") and augmented is False:
        raise Wrong(
            f"{where}: augment",
            f"is {base['augment']:g}, but teacher.{name} was trained without augmentation; set it to 0, or train the teacher with "
            f"teacher.{name}.augment above 0",
        )
    for key, off in (("uncertainty", False), ("normalise", "all")):
        if base.get(key, off) != off and file not in (None, "edm2"):
            raise Wrong(
                f"{where}: {key}",
                f"is {str(base[key]).lower()}, but teacher.{name} has the network {file}, and only edm2 offers this; "
                f"set it to {str(off).lower()}",
            )


def _start(params: Sections, where: str, base: Section, data: str) -> None:
    if base["start_from"] is None:
        return
    other, _, supplement = base["start_from"].partition("/")
    if not params.has_numbers(other, data):
        raise Wrong(
            f"{where}.start_from",
            f"is {base['start_from']}, but distil.methods.{other} has no numbers for the data {data}; give it a block under "
            f"per_data.{data}, or remove start_from",
        )
    begun = params.peek("method", other, data)
    mine, its = (each.get("sigma_init", each.get("sigma_max")) for each in (base, begun))
    if None not in (mine, its) and mine != its:
        key = "sigma_init" if "sigma_init" in base else "sigma_max"
        raise Wrong(
            f"{where}.start_from",
            f"is {base['start_from']}, whose generator starts from the noise level {its:g} on {data}, but {key} is {mine:g}; "
            f"set {key} to {its:g}",
        )
    if base["generator_network"] != begun["generator_network"]:
        own, its = (str(each["generator_network"] or "null") for each in (base, begun))
        raise Wrong(
            f"{where}.start_from",
            f"is {base['start_from']}, whose generator_network is {its} on {data}, but the one of this method is {own}; make them equal",
        )
    check_run(params, data, other, () if supplement == "none" else tuple(supplement.split("+")))


def _gan(params: Sections, run: str, method: str, base: Section, added: dict[str, Section]) -> None:
    heads = [method] if has_discriminator(f"methods/{base['file']}") else []
    for name, each in added.items():
        if not has_discriminator(f"supplements/{each['file']}"):
            continue
        place = params.place("supplement", name)
        if not trains_fake_score(base):
            raise Wrong(place, f"needs a fake_score, and distil.methods.{method} trains none (run {run}); choose another method, or "
                        f"remove {name} from the run")  # fmt: skip
        if each["weight"] and heads:
            raise Wrong(place, f"adds a discriminator, but {heads[0]} brings one already (run {run}); remove {name} from the run, or "
                        "choose a method without one, such as dmd")  # fmt: skip
        heads += [name] if each["weight"] else []
