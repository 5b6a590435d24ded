"""Changes to the content of a record, as errors are planted in it. Not here: any test."""

from __future__ import annotations

import json


def scale(place, *keys, by):
    """Multiply the entries ``keys`` of the part that ``place`` finds."""

    def change(content):
        part = place(content)
        for key in keys:
            part[key] = multiply(part[key], by)

    return change


def multiply(value, by):
    if isinstance(value, list):
        return [multiply(entry, by) for entry in value]
    return value if value is None or isinstance(value, str) else value * by


def leave_offset(content):
    """A constant offset in every error of a calibration, and the shares that follow from it."""
    part = calibration(content)
    part["energy"] = [[n, s, e + 1.0] for n, s, e in part["energy"]]
    part["within"] = [0.0, 0.0]


def replace_rows(place, key, function):
    """Replace every row of a table by ``function`` of it."""

    def change(content):
        part = place(content)
        part[key] = [function(*row) for row in part[key]]

    return change


def scale_each(place, key, by):
    """Multiply ``key`` of every entry of the list that ``place`` finds."""

    def change(content):
        for entry in place(content):
            entry[key] = multiply(entry[key], by)

    return change


def put(place, **values):
    return lambda content: place(content).update(values)


def accuracy(content):
    return content["comparisons"][0]["accuracy"]


def parity(content):
    return content["comparisons"][0]["parity"]


def density(content):
    return parity(content)["force"]


def bins(content):
    return parity(content)["force_bins"]


def coverage(content):
    return content["comparisons"][0]["coverage"]


def elements(content):
    return accuracy(content)["per_element"].values()


def noise(content):
    return content["teacher_noise"]


def calibration(content):
    return content["calibration"]


def learning(content):
    return content["model"]["training"]["learning_curve"]


def find_curves(content, mode="ase-call"):
    curves = [c for c in content["speed"] if c["mode"] == mode]
    return [next(c for c in curves if c["role"] == role) for role in ("student", "teacher")]


def student_curve(content):
    return find_curves(content)[0]


def all_points(content):
    return [point for curve in content["speed"] for point in curve["points"]]


def intervals(content):
    return accuracy(content)["intervals"]


def rows(content):
    return accuracy(content)["per_temperature"]


def put_intervals(function):
    return lambda c: intervals(c).update({k: function(*v) for k, v in intervals(c).items()})


def move_frames(content):
    """Frames and atoms of one temperature counted at another."""
    first, second = rows(content)[:2]
    for key in ("n_frames", "n_atoms"):
        first[key], second[key] = first[key] + second[key] - 1, 1


def magnify_noise(content):
    """Noise of forces in percent, in the rows of the frames too."""
    for part in (noise(content), *noise(content)["rows"]):
        for key in ("rotation_force", "jitter_force", "batch_force"):
            part[key] *= 100


def scale_times(role, by):
    """Every time of one side in another unit, with what follows from it."""

    def change(content):
        for curve in content["speed"]:
            for point in curve["points"] if curve["role"] == role else ():
                for key in ("seconds", "median", "mean", "q10", "q90"):
                    point[key] = multiply(point[key], by)
                if point["status"] == "measured":
                    point["atom_steps_per_second"] /= by

    return change


def swap_noise(content):
    content["teacher_noise"], content["student_noise"] = (
        content["student_noise"],
        content["teacher_noise"],
    )


def swap_noise_numbers(content):
    """The identities stay where they belong."""
    swap_noise(content)
    first, second = content["teacher_noise"], content["student_noise"]
    first["identity"], second["identity"] = second["identity"], first["identity"]


def swap_memory(content):
    first, second = find_curves(content)
    for a, b in zip(first["points"], second["points"], strict=True):
        a["peak_memory"], b["peak_memory"] = b["peak_memory"], a["peak_memory"]


def swap_labels(content):
    first, second = find_curves(content)
    first["label"], second["label"] = second["label"], first["label"]


def swap_comparisons(content):
    """The frames of one comparison under the name of another."""
    first, second = content["comparisons"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def stretch_steps(content):
    for curve in content["speed"]:
        curve["time_step"] = multiply(curve["time_step"], 10)


def stretch_some_steps(content):
    for curve in find_curves(content, "ase-md"):
        curve["time_step"] *= 2


def drop_stamp(content):
    content["teacher_noise"]["stamp"] = None


def swap_sides(content, kind, whole):
    """Exchange teacher and student in everything that an item says, with the identity or without."""

    def swap(part):
        if isinstance(part, dict):
            for key in [k for k in part if k.startswith("teacher")]:
                other = key.replace("teacher", "student")
                part[key], part[other] = part[other], part[key]
        for entry in part.values() if isinstance(part, dict) else part:
            if isinstance(entry, dict | list):
                swap(entry)

    part = item(kind)(content)
    identity = json.loads(json.dumps(part["identity"]))
    swap(part)
    if not whole:
        part["identity"] = identity
    for quantity in part["quantities"]:
        if quantity["teacher"] is not None and quantity["student"] is None:
            quantity["teacher"], quantity["student"] = None, quantity["teacher"]


def item(kind):
    """The physical property of a kind."""
    return lambda content: next(i for i in content["physics"]["items"] if i["kind"] == kind)


def curves(kind):
    return lambda content: item(kind)(content)["curves"]


def exchange(kind, *, whole):
    return lambda content: swap_sides(content, kind, whole)


def convert(place, *keys, by):
    """Both sides and what is derived from them in another unit, so that nothing contradicts itself."""

    def change(content):
        from fastff.report.physics.derive import derive_quantities
        from fastff.report.physics.record import PhysicsPart

        for part in place(content):
            for key in keys:
                part[key] = multiply(part[key], by)
        fresh = PhysicsPart.model_validate(
            {**content["physics"], "items": content["physics"]["items"]}
        )
        for entry, made in zip(content["physics"]["items"], fresh.items, strict=True):
            entry["quantities"] = [q.model_dump(mode="json") for q in derive_quantities(made)]

    return change
