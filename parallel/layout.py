"""How one run is spread over ranks: one frozen object, passed explicitly."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

PipelineSchedule = Literal["gpipe", "1f1b", "interleaved1f1b", "zbv", "dualpipev"]


class Layout(BaseModel):
    """Degrees of parallelism of one run, and the form that each takes.

    The world size is the product of the four sizes. The layout is not part of a run's identity:
    the same science on another layout is the same run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    context_parallel_size: PositiveInt = 1
    tensor_parallel_size: PositiveInt = 1

    pipeline_schedule: PipelineSchedule = "1f1b"
    virtual_pipeline_parallel_size: PositiveInt = Field(2, description="stages of one rank under interleaved1f1b")
    pipeline_split: tuple[PositiveInt, ...] | None = Field(
        None, description="layers of each stage; default even in cost, with embedding and logits counted"
    )
    data_parallel_method: Literal["zero1", "fsdp2"] = Field(
        "zero1", description="zero1: optimizer state sharded; fsdp2: weights and gradients too"
    )
    context_parallel_method: Literal["ring", "ulysses"] = "ring"
    sequence_parallel: bool | None = Field(
        None, description="split the tokens between tensor-parallel regions; default wherever they divide evenly"
    )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return (
            self.pipeline_parallel_size
            * self.data_parallel_size
            * self.context_parallel_size
            * self.tensor_parallel_size
        )

    @property
    def uses_fsdp2(self) -> bool:
        """Whether weights and gradients are sharded: it is asked for, and there are ranks to share them."""
        return self.data_parallel_method == "fsdp2" and self.data_parallel_size * self.context_parallel_size > 1

    @property
    def stages_per_rank(self) -> int:
        """Pipeline stages that one rank holds."""
        if self.pipeline_parallel_size == 1 or self.pipeline_schedule in ("gpipe", "1f1b"):
            return 1
        return self.virtual_pipeline_parallel_size if self.pipeline_schedule == "interleaved1f1b" else 2

    @property
    def num_stages(self) -> int:
        """Pipeline stages in all."""
        return self.pipeline_parallel_size * self.stages_per_rank

    def rank_of_stage(self, stage: int) -> int:
        """The pipeline rank that holds `stage`: round robin, or there and back (a V) for zbv and dualpipev."""
        size = self.pipeline_parallel_size
        if self.pipeline_schedule in ("zbv", "dualpipev") and stage >= size:
            return 2 * size - 1 - stage
        return stage % size

    def __str__(self) -> str:
        """Compact: `pp2 dp2`, or `single`."""
        sizes = {
            "pp": self.pipeline_parallel_size,
            "dp": self.data_parallel_size,
            "cp": self.context_parallel_size,
            "tp": self.tensor_parallel_size,
        }
        return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "single"
