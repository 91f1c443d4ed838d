"""The options that describe a run to price, declared once for every verb of `scaling cost` that takes them."""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_args

import typer

from scaling.errors import UserError

if TYPE_CHECKING:
    from analysis.cost.architecture import Architecture
    from analysis.cost.calibration import Calibration
    from analysis.cost.defaults import Choice, Completed
    from analysis.cost.devices import Device

_COUNT = re.compile(r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[kmbt]?)", re.IGNORECASE)
_COUNTED_GPUS = re.compile(r"(?P<number>[0-9]+)\s*[x*]\s*(?P<gpu>.+)", re.IGNORECASE)
#: Commas between thousands: 7,000,000,000 or 1,500.5B.
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?\s*[a-z]?", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
#: --model and --params may differ by so much, since names are rounded.
_SAME_MODEL = 0.05

#: A whole number that may be left open.
Size = Optional[int]


def _size(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, show_default=False)


@dataclass(frozen=True)
class RunOptions:
    """A run as the command line says it; None where it is left open."""

    model: Annotated[
        Optional[str], typer.Option(metavar="NAME|config.json", help="A known open model, or a config.json.")
    ] = None
    params: Annotated[
        Optional[str], typer.Option(metavar="N", help="Instead of --model: parameters with embeddings, such as 7B.")
    ] = None
    tokens: Annotated[
        Optional[str], typer.Option(metavar="D", help="Tokens to train on, such as 300B. Default: 20 a parameter.")
    ] = None
    gpu: Annotated[Optional[str], typer.Option(help="Such as H100 or A100-40GB; cpu: this machine's, measured.")] = None
    device_file: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Instead of --gpu: your own device, YAML or JSON.")
    ] = None
    num_gpus: Annotated[Size, _size("GPUs; of a CPU, cores. Default: enough to fit and to end in 30 days.")] = None
    seq_length: Annotated[Size, _size("Tokens of a sequence. Default: 4096.")] = None
    global_batch_size: Annotated[Size, _size("Sequences of a step. Default: by a published rule.")] = None
    micro_batch_size: Annotated[Size, _size("Sequences that a GPU takes at once.")] = None
    tensor_parallel_size: Annotated[Size, _size("GPUs that share each matrix.")] = None
    pipeline_parallel_size: Annotated[Size, _size("GPUs that share the layers.")] = None
    virtual_pipeline_parallel_size: Annotated[Size, _size("Interleaved stages of a pipeline rank.")] = None
    context_parallel_size: Annotated[Size, _size("GPUs that share each sequence.")] = None
    expert_parallel_size: Annotated[Size, _size("GPUs that hold different experts.")] = None
    expert_tensor_parallel_size: Annotated[Size, _size("GPUs that share the matrices of one expert.")] = None
    pipeline_schedule: Annotated[
        Optional[str], typer.Option(help="gpipe, 1f1b, interleaved1f1b, zb1p, zb2p, zbv or dualpipev.")
    ] = None
    sharding: Annotated[Optional[str], typer.Option(help="none, zero1, zero2 or zero3 (FSDP).")] = None
    recompute_granularity: Annotated[Optional[str], typer.Option(help="none, selective (attention) or full.")] = None
    sequence_parallel: Annotated[
        Optional[bool], typer.Option("--sequence-parallel/--no-sequence-parallel", help="Between tensor ranks.")
    ] = None
    flash_attention: Annotated[
        Optional[bool], typer.Option("--flash-attention/--no-flash-attention", help="Scores are never written.")
    ] = None
    loss: Annotated[
        Optional[str], typer.Option(help="Of the fsdp stacks: whole, compiled or chunked cross-entropy.")
    ] = None
    precision: Annotated[Optional[str], typer.Option(help="fp32, fp16, bf16, fp8, mxfp8 or nvfp4.")] = None
    stack: Annotated[
        Optional[str], typer.Option(help="Software: megatron, megatron_2021, fsdp_compiled, fsdp_eager or untuned.")
    ] = None
    calibration: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Constants that `scaling cost calibrate` has written.")
    ] = None


@dataclass(frozen=True)
class Run:
    """The run that the options describe, with what was chosen for it, and what to know of how they were read."""

    completed: "Completed"
    calibration: "Calibration | None"
    choices: tuple["Choice", ...]
    warnings: tuple[str, ...]


def with_run_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb(options, ...)` with the fields of RunOptions as its command line's options, and its own after them."""
    own = list(inspect.signature(verb).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=field.type,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(RunOptions)
    ]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    def command(**values: Any) -> None:
        options = RunOptions(**{field.name: values.pop(field.name) for field in fields(RunOptions)})
        verb(options, **values)

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    command.__signature__ = inspect.Signature([*shared, *keyword_only])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *keyword_only)}
    return command


def read_run(options: RunOptions) -> Run:
    """The run with everything chosen that the options leave open. Raises UserError for what is wrong in them."""
    from analysis.cost import setup as names
    from analysis.cost.calibration import Calibration
    from analysis.cost.defaults import complete_setup

    model, shaped, warnings = _model(options)
    device, read_as = _device(options)
    given = {name: value for name in _SETUP_FIELDS if (value := getattr(options, name)) is not None}
    for field, allowed in (
        ("precision", names.Precision),
        ("recompute_granularity", names.Recompute),
        ("sharding", names.Sharding),
        ("pipeline_schedule", names.Schedule),
        ("loss", names.Loss),
        ("stack", names.Stack),
    ):
        _one_of(field, given.get(field), get_args(allowed))
    calibration = None if options.calibration is None else Calibration.from_file(options.calibration)
    if calibration is not None:
        given.setdefault("stack", calibration.stack)
    tokens = None if options.tokens is None else parse_count("--tokens", options.tokens)
    completed = complete_setup(model, device, tokens, given)
    return Run(completed, calibration, (*shaped, *read_as, *completed.choices), warnings)


#: Options that are fields of Setup.
_SETUP_FIELDS = tuple(
    field.name
    for field in fields(RunOptions)
    if field.name not in ("model", "params", "tokens", "gpu", "device_file", "calibration")
)


def parse_count(option: str, text: str) -> float:
    """15e12, 15T, 300B, 7b or 2_000 as a number. Raises UserError for what is none, or not above zero."""
    plain = text.strip().replace("_", "")
    if "," in plain:
        if not _GROUPED.fullmatch(plain):
            remedy = f"did you mean {plain.replace(',', '.')}?" if plain.count(",") == 1 else "write 7,000,000 or 7.5B"
            raise UserError(f"{option} {text}: a comma stands before groups of three digits only: {remedy}")
        plain = plain.replace(",", "")
    match = _COUNT.fullmatch(plain)
    try:
        value = float(match["number"]) * _UNITS[match["unit"].lower()] if match else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{option} {text}: must be a number above zero, such as 7e9, 7B or 15T")
    return value


def _one_of(field: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is None or value in allowed:
        return
    near = get_close_matches(value, allowed, n=1, cutoff=0.4)
    choice = f"did you mean {near[0]}? Choose" if near else "choose"
    raise UserError(f"{field} = {value}: is not known: {choice} from {', '.join(allowed)}")


def _model(options: RunOptions) -> tuple["Architecture", tuple["Choice", ...], tuple[str, ...]]:
    """The architecture, the choice of its shape where only a number was given, and remarks on a config.json."""
    from analysis.cost.counts import parameters
    from analysis.formatting import count

    num_params = None if options.params is None else parse_count("--params", options.params)
    if options.model is None:
        if num_params is None:
            raise UserError("no model given: give --model NAME, --model config.json or --params N, such as --params 7B")
        return (*_shaped(num_params), ())
    if not options.model.strip():
        raise UserError(
            f"--model {options.model!r}: is empty: give the name of a model, such as llama-3-70b, or a path"
        )
    path, remarks = Path(options.model), ()
    if path.suffix == ".json" or path.is_dir():
        from analysis.cost.config_json import read_config_json

        model, remarks = read_config_json(path)
    else:
        from analysis.cost.models import find_model

        model = find_model(options.model)
    total = parameters(model).total
    if num_params is not None and abs(num_params / total - 1) > _SAME_MODEL:
        raise UserError(f"--params {options.params}: {model.name} has {count(total)} parameters: leave --params out")
    return model, (), tuple(remarks)


def _shaped(num_params: float) -> tuple["Architecture", tuple["Choice", ...]]:
    from analysis.cost.defaults import Choice
    from analysis.cost.shape import llama_of, shape_rule

    model = llama_of(num_params)
    shape = (
        f"{model.num_layers} layers of {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.num_query_groups} query groups, MLP of {model.ffn_hidden_size}, vocabulary of {model.vocab_size}"
    )
    return model, (Choice("model", shape, shape_rule()),)


def _device(options: RunOptions) -> tuple["Device", tuple["Choice", ...]]:
    """The device, and what was taken where its name leaves that open."""
    from analysis.cost.defaults import Choice
    from analysis.cost.devices import find_device, require_device

    if (options.gpu is None) == (options.device_file is None):
        what = "no device given" if options.gpu is None else f"--gpu {options.gpu} and --device-file given"
        raise UserError(f"{what}: give one of --gpu NAME, such as --gpu H100, and --device-file FILE")
    if options.device_file is not None:
        from analysis.cost.device_file import load_device

        return load_device(options.device_file), ()
    if options.gpu.strip().lower() == "cpu":
        from analysis.cost.cpu_device import cpu_device

        device = cpu_device()
        return device, (Choice("gpu", device.name, device.source),)
    counted = _COUNTED_GPUS.fullmatch(options.gpu.strip())
    if counted and find_device(counted["gpu"]):
        raise UserError(
            f"--gpu {options.gpu}: holds a number of GPUs: give --gpu {counted['gpu']} --num-gpus {counted['number']}"
        )
    device = require_device(options.gpu)
    return device, (Choice("gpu", device.name, device.note),) if device.note else ()
