"""Model, parallel axes and gradients of one run on one rank, bound together: batch in, loss and gradients out."""

import math

import numpy as np
import torch
from torch import Tensor

from parallel.context import local_positions
from parallel.data import FlatParameters
from parallel.kernels import UNCHECKED, Kernels
from parallel.mesh import Axis, Mesh
from parallel.pipeline import Pipeline, split_layers, stage_ranges, stages_of
from scaling.accounting import flops_per_token
from scaling.config import RunConfig
from scaling.initialisation import initialise
from scaling.model import Place, Transformer

#: Beyond this the [T, T] scores of the hand-written attention cost more than torch's blocked kernel saves.
_LONGEST_FUSED_SEQUENCE = 512
#: Tokens in one forward pass of the evaluation; bounds the memory of the logits.
_TOKENS_PER_PASS = 8192


def fusing(config: RunConfig, device: torch.device) -> bool:
    """Whether the hand-written functions are used: they were written for, and measured on, CPUs."""
    if config.parallel.uses_fsdp2 or config.execution.recompute_granularity == "selective":
        return False  # they need a flat gradient to add to, and know only to keep everything
    return device.type == "cpu" and config.data.seq_length <= _LONGEST_FUSED_SEQUENCE


def uses_sequence_parallel(config: RunConfig) -> bool:
    """Whether tensor ranks divide the tokens between their regions: as set, or wherever they divide evenly."""
    layout = config.parallel
    local = config.data.seq_length // layout.context_parallel_size
    fits = layout.tensor_parallel_size > 1 and local % layout.tensor_parallel_size == 0
    return fits if layout.sequence_parallel is None else layout.sequence_parallel


def layers_of_stages(config: RunConfig) -> list[int]:
    """Layers of each pipeline stage: as set, or even in cost."""
    layout = config.parallel
    if layout.pipeline_split is not None:
        return list(layout.pipeline_split)
    head = 6 * config.model.vocab_size * config.model.hidden_size  # the logits, FLOPs a token
    layers = flops_per_token(config.model, config.data.seq_length, "causal") - head
    # looking a row up is nothing; adding to the table's gradient moves as much as a small product does
    per_layer = layers / config.model.num_layers
    return split_layers(per_layer, config.model.num_layers, 0.1 * per_layer, head, layout.num_stages)


def build_stages(config: RunConfig, mesh: Mesh, kernels: Kernels) -> dict[int, Transformer]:
    """The recipe: this rank's part of the model, stage by stage, with its weights.

    Pipeline: which layers. Tensor, sequence and context: the modules cut themselves by `Place.mesh`. A tied
    embedding lies at both ends of the pipeline: as one parameter where both are on this rank, else as two
    whose gradients are summed. Recomputation wraps layers or their cores. Data parallelism follows, in Engine.
    """
    layout = mesh.layout
    apart = layout.rank_of_stage(0) != layout.rank_of_stage(layout.num_stages - 1)
    tied = mesh.ends_of_pipeline() if config.model.tie_word_embeddings and apart else Axis()
    ranges = stage_ranges(layers_of_stages(config))
    stages: dict[int, Transformer] = {}
    for stage in stages_of(layout, mesh.pipeline.rank):
        first, end = ranges[stage]
        granularity, length = config.execution.recompute_granularity, config.data.seq_length
        place = Place(mesh, uses_sequence_parallel(config), first, end, tied, granularity, length, kernels)
        shared = stages[0].embedding if 0 in stages else None
        stages[stage] = Transformer(config.model, place, shared)
        initialise(stages[stage], config.model, config.seed)
    return stages


class Engine:
    """This rank's stages on a device with their gradients; see `forward_backward`.

    Attributes:
        stages: pipeline stage -> module; one stage, 0, without a pipeline.
        storage: the parameters and gradients (parallel.data.FlatParameters, or parallel.fsdp.ShardedParameters).
        fused: names of the hand-written functions in use.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        dtype: str,
        mesh: Mesh | None = None,
        kernels: Kernels = UNCHECKED,
    ):
        self.config, self.device, self.mesh = config, device, mesh or Mesh(config.parallel, device=device)
        self.stages = build_stages(config, self.mesh, kernels)
        modules = list(self.stages.values())
        for module in modules:
            module.to(device, torch.float64 if dtype == "float64" else torch.float32)
        low = torch.bfloat16 if dtype == "bfloat16" else None
        self.fused: list[str] = []
        if config.parallel.uses_fsdp2:
            from parallel.fsdp import ShardedParameters

            self.storage = ShardedParameters(modules, low, self.mesh)
        else:
            self.storage = FlatParameters(modules, low, self.mesh.replica)
            for module in modules:
                self.fused = sorted({*self.fused, *module.bind(self.storage, fusing(config, device))})
        rows = config.global_batch_size // config.parallel.data_parallel_size
        self.rows = slice(self.mesh.data.rank * rows, (self.mesh.data.rank + 1) * rows)
        self.micro_batch_size = config.micro_batch_size
        self.micro_batches = rows // self.micro_batch_size
        length, context = config.data.seq_length, self.mesh.context
        positions = local_positions(length, context, config.parallel.context_parallel_method)
        self.positions = slice(0, length) if context.size == 1 else positions.numpy()
        self.targets = slice(1, length + 1) if context.size == 1 else positions.numpy() + 1
        self.scale = 1.0 / config.tokens_per_step
        self.dtype = torch.float64 if dtype == "float64" else torch.float32
        self.pipeline = self._build_pipeline() if self.mesh.pipeline.size > 1 else None
        puts_off = self.pipeline is not None and config.parallel.pipeline_schedule in ("zbv", "dualpipev")
        overlapping = self.mesh.replica.size > 1 and not puts_off
        if overlapping and isinstance(self.storage, FlatParameters):
            for module in modules:
                module.call_when_ready = self.storage.ready

    def _hidden_shape(self, sequences: int) -> tuple[int, int]:
        """Of what travels between stages for so many sequences: this rank's tokens, and channels."""
        tokens = sequences * self.config.data.seq_length // self.mesh.context.size
        if uses_sequence_parallel(self.config):
            tokens //= self.mesh.tensor.size
        return tokens, self.config.model.hidden_size

    def _build_pipeline(self) -> Pipeline:
        length = self.config.data.seq_length // self.mesh.context.size
        ids = torch.empty(self.micro_batch_size, length, dtype=torch.int64, device=self.device)
        hidden = torch.empty(self._hidden_shape(self.micro_batch_size), dtype=self.dtype, device=self.device)
        last = self.stages.get(self.mesh.layout.num_stages - 1)

        def loss(hidden: Tensor, targets: Tensor) -> Tensor:
            return last.loss_of(hidden, targets) * self.scale

        return Pipeline(self.mesh, self.stages, loss, self.micro_batches, ids, hidden.requires_grad_())

    def _to_device(self, tokens: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(tokens))
        return found.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else found

    def forward_backward(self, batch: np.ndarray) -> Tensor:
        """Add this rank's part of the gradients of the mean loss over `batch`, int64 [global_batch_size, T + 1].

        Returns its part of the mean training loss, nats per token, a scalar on the device: the parts of all ranks
        add up to the loss. Every micro-batch's sum is divided by the tokens of the whole batch, so neither the split
        into micro-batches nor that over ranks matters. The gradients are complete after `storage.finish()`.
        """
        rows = batch[self.rows]
        ids, targets = self._to_device(rows[:, self.positions]), self._to_device(rows[:, self.targets])
        self.storage.expect(self.micro_batches)
        if self.pipeline is not None:
            total = self.pipeline.forward_backward(ids, targets)
        else:
            (model,), total = self.stages.values(), None
            pairs = list(zip(ids.split(self.micro_batch_size), targets.split(self.micro_batch_size)))
            for number, (micro_ids, micro_targets) in enumerate(pairs):
                self.storage.before_backward(number == len(pairs) - 1)
                loss = model(micro_ids, micro_targets) * self.scale
                loss.backward()
                total = loss.detach() if total is None else total + loss.detach()
        self.storage.finish()
        # every tensor rank has the whole sum
        return total if self.mesh.tensor.rank == 0 else torch.zeros_like(total)

    @torch.no_grad()
    def sequence_losses(self, sequences: np.ndarray) -> np.ndarray:
        """Sum of the losses, nats, of each of `sequences`, int64 [S, T + 1]: float64 [S] on every rank. Collective."""
        sums = torch.zeros(len(sequences), dtype=torch.float64, device=self.device)
        each = math.ceil(len(sequences) / self.mesh.data.size)
        mine = np.arange(each) + self.mesh.data.rank * each
        per_pass = max(1, _TOKENS_PER_PASS // self.config.data.seq_length)
        for chosen in np.split(mine, range(per_pass, each, per_pass)):
            # FSDP2's ranks meet in every pass, so each makes as many: those without a sequence repeat the last one
            own = chosen < len(sequences)
            tokens = sequences[chosen.clip(max=len(sequences) - 1)]
            ids, targets = (self._to_device(tokens[:, at]) for at in (self.positions, self.targets))
            hidden = self._hidden_states(ids)
            if hidden is not None:
                losses = self.stages[self.mesh.layout.num_stages - 1].losses(hidden, targets)
                if self.mesh.tensor.rank == 0:
                    sums[chosen[own]] = losses.double().sum(1)[: own.sum()]
        self.mesh.world.all_reduce(sums)
        return sums.cpu().numpy()

    def _hidden_states(self, ids: Tensor) -> Tensor | None:
        if self.pipeline is not None:
            return self.pipeline.forward(ids, self._hidden_shape(len(ids)))
        return self.stages[0](ids)
