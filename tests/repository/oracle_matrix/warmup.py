"""Warm-up requests: kinds of data, files and their sizes."""

from __future__ import annotations

from oracle_matrix.models import CPU, HEAD, ONE, Case, io, python


def warmup() -> dict[str, Case]:
    """Return the models by name."""

    def sample(body: str, *, batch: int = 1, count: int = 0, name: str = "w") -> str:
        return f'model_warmup [ {{ name: "{name}" batch_size: {batch} count: {count} {body} }} ]'

    def given(values: str, key: str = "x") -> str:
        return f'inputs {{ key: "{key}" value: {{ {values} }} }}'

    four = "data_type: TYPE_FP32 dims: [ 4 ]"
    text = "data_type: TYPE_STRING dims: [ 2 ]"
    raw = {"raw": b"\0" * 16, "short": b"\0" * 8, "long": b"\0" * 32, "four": b"\0" * 64}
    strings = {
        "framed": b"\x02\0\0\0ab\x01\0\0\0c",
        "unframed": b"abc",
        "cut": b"\x02\0\0\0ab\x09\0\0\0c",
        "one": b"\x02\0\0\0ab",
        "three": b"\x01\0\0\0a" * 3,
    }
    bodies = {
        "zero": sample(given(f"{four} zero_data: true")),
        "random": sample(given(f"{four} random_data: true")),
        "file": sample(given(f'{four} input_data_file: "raw"')),
        "file_missing": sample(given(f'{four} input_data_file: "none"')),
        "file_short": sample(given(f'{four} input_data_file: "short"')),
        "file_long": sample(given(f'{four} input_data_file: "long"')),
        "file_of_batch": sample(given(f'{four} input_data_file: "raw"'), batch=4),
        "file_of_whole_batch": sample(given(f'{four} input_data_file: "four"'), batch=4),
        "file_outside": sample(given(f'{four} input_data_file: "../1/model.py"')),
        "no_data": sample(given(four)),
        "other_name": sample(given(f"{four} zero_data: true", key="z")),
        "nothing": sample(""),
        "type": sample(given("data_type: TYPE_INT32 dims: [ 4 ] zero_data: true")),
        "no_type": sample(given("dims: [ 4 ] zero_data: true")),
        "dims": sample(given("data_type: TYPE_FP32 dims: [ 5 ] zero_data: true")),
        "rank": sample(given("data_type: TYPE_FP32 dims: [ 2, 2 ] zero_data: true")),
        "no_dims": sample(given("data_type: TYPE_FP32 zero_data: true")),
        "varies": sample(given("data_type: TYPE_FP32 dims: [ -1 ] zero_data: true")),
        "batch_zero": sample(given(f"{four} zero_data: true"), batch=0),
        "batch_above": sample(given(f"{four} zero_data: true"), batch=8),
        "count": sample(given(f"{four} zero_data: true"), count=3),
        "no_name": sample(given(f"{four} zero_data: true"), name=""),
        "twice": sample(given(f"{four} zero_data: true")) + "\n" + sample(given(f"{four} zero_data: true")),
    }
    files = {f"warmup__{name}": content for name, content in raw.items()}
    cases = {f"warmup.{name}": python(ONE + body, **files) for name, body in bodies.items()}
    head = HEAD + io("STRING", "2") + CPU
    files = {f"warmup__{name}": content for name, content in strings.items()}
    for name in strings:
        cases[f"warmup.text_{name}"] = python(head + sample(given(f'{text} input_data_file: "{name}"')), **files)
    cases["warmup.text_zero"] = python(head + sample(given(f"{text} zero_data: true")))
    cases["warmup.text_random"] = python(head + sample(given(f"{text} random_data: true")))
    two = HEAD + io() + 'input [ { name: "z" data_type: TYPE_FP32 dims: [ 4 ] OPTIONAL } ]\n' + CPU
    body = sample(given(f"{four} zero_data: true"))
    cases["warmup.one_of_two"] = python(two.replace("OPTIONAL", "") + body)
    cases["warmup.optional_left_out"] = python(two.replace("OPTIONAL", "optional: true") + body)
    ragged = HEAD + io(dims="-1") + CPU
    cases["warmup.of_varying"] = python(ragged + sample(given("data_type: TYPE_FP32 dims: [ 1 ] zero_data: true")))
    shaped = HEAD + io(more_in="reshape { shape: [ 2, 2 ] }") + CPU
    cases["warmup.of_reshaped"] = python(shaped + sample(given("data_type: TYPE_FP32 dims: [ 4 ] zero_data: true")))
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["warmup.without_batch"] = python(flat + body)
    cases["warmup.without_batch_two"] = python(flat + sample(given(f"{four} zero_data: true"), batch=2))
    return cases
