"""What each software stack holds in memory beside the weights: bytes an element, by tensor, with sources.

`Stack` is a Setup's word. The constants are read off the stacks' code, not fitted to measured peaks; only the interval
in analysis/cost/memory.py is.

megatron       Megatron-Core with Transformer Engine: norms fused with the product that follows, which gathers its input
               anew in the backward pass; SwiGLU keeps what it takes and what it gives; weight gradients are added to
               fp32 buffers. Transformer Engine hands autograd an empty gradient in its place, cached by shape
               (transformer_engine.pytorch.module.base.get_dummy_wgrad): every distinct matrix once more, in bf16.
               Fused cross-entropy writes the gradient over the bf16 logits.
megatron_2021  Megatron-LM and Megatron-DeepSpeed of the GPT-3 years: dropout, whose masks are one byte; cross-entropy
               in fp32 of its own copy (Shoeybi et al. 2019), whose result replaces the copy: 2 + 4 + 4; a pipeline
               stage's output is kept after it is sent.
fsdp_eager     torch FSDP: fp32 weights, gathered in bf16 and reduced in fp32; autograd keeps every input, gathered ones
               too; the loss has the logits in bf16 and, in fp32, their copy, the log-softmax and the gradient: 14
               (torch.nn.functional.cross_entropy of logits that the training loop still holds). Where tensor ranks
               divide the logits, the backward pass has log-softmax, one-hot, their sum and the gradient at once: 18
               (torch.distributed.tensor.parallel.loss_parallel).
fsdp_compiled  the same through torch.compile, whose partitioner computes element-wise results again (He & Yu 2023,
               pytorch/functorch min_cut_rematerialization_partition): norms' and activations' outputs are not kept, nor
               is what no backward pass takes. A compiled loss has the logits and their gradient in bf16, no more; a
               chunked one an eighth of the logits, and the gradient of what they are made of in fp32 (torchtitan).
eager          plain torch with mixed precision by hand: as fsdp_eager, and bf16 gradients are summed in fp32.
"""

from dataclasses import dataclass, replace

from analysis.cost.setup import Setup
from scaling.activations import Kept

#: Bytes of one element of what a low-precision product takes, with the scales of its blocks (OCP MX specification 1.0:
#: one byte for 32; NVFP4: one byte for 16).
_LOW_BYTES = {"fp8": 1.0, "mxfp8": 1 + 1 / 32, "nvfp4": 0.5 + 1 / 16}


#: Bytes: reduce_bucket_size and allgather_bucket_size, 5e8 elements each of 16 bits (DeepSpeed's configuration).
_DEEPSPEED_BUCKETS = 2 * 5e8 * 2.0
#: Parts of the tokens that a chunked loss takes one after the other (torchtitan, ChunkedCELoss).
_CHUNKS = 8


@dataclass(frozen=True)
class StackMemory:
    """Bytes per parameter, per logit, and what one layer keeps, under one stack and precision."""

    kept: Kept
    weights: float
    gradients: float
    main_weights: float
    #: Both of Adam's moments.
    optimizer: float = 8.0
    #: Of a gathered weight, and of a gradient on its way to other ranks.
    gathered: float = 2.0
    reduced: float = 4.0
    #: Of each logit while the loss is computed, and of each element of what the output layer takes.
    logits: float = 12.0
    into_logits: float = 0.0
    #: Of each element of the distinct matrices of one layer and of the output layer.
    dummy_gradients: float = 0.0
    #: Low-precision copies of the layers' matrices, as they are and transposed.
    weight_copies: float = 0.0
    #: Bytes that communication between data ranks keeps, however large the model.
    buckets: float = 0.0
    #: Whether every tensor rank keeps the gathered inputs of its products under sequence parallelism.
    keeps_gathered: bool = False
    #: Whether a pipeline stage keeps what it has sent on until that micro-batch's backward pass.
    keeps_sent: bool = False


def stack_memory(setup: Setup) -> StackMemory:
    """The constants of `setup`'s stack at its precision, recomputation and kind of attention."""
    element = 4.0 if setup.precision == "fp32" else 2.0
    megatron = setup.stack in ("megatron", "megatron_2021")
    fused_activation = megatron or setup.stack == "fsdp_compiled"
    kept = Kept(
        norm_input=element,
        norm_output=element,
        query=element,
        key=element,
        value=element,
        attention_output=element,
        columns=element,
        activated=0.0 if fused_activation else element,
        product=element,
        norm_statistics=4.0,
        softmax_statistics=4.0 if setup.flash_attention else 0.0,
        expert_output=0.0 if megatron else element,
    )
    if not setup.flash_attention:
        # softmax, dropout's mask, what it leaves (Korthikanti et al. 2022, eq. 2); autograd: fp32 softmax, its copy
        kept = replace(kept, scores=5.0 if megatron else 4.0 + element)
    if setup.stack == "fsdp_compiled":
        gathered = element if setup.tensor_parallel_size > 1 else 0.0  # ranks are not asked again for what they sent
        kept = replace(kept, norm_output=gathered, product=0.0)
    if setup.stack == "megatron_2021":
        kept = replace(kept, masks=1.0)
    if megatron and setup.context_parallel_size > 1:
        # the output before the ranks exchange it, and after (Transformer Engine since 2.8)
        kept = replace(kept, attention_output=2 * element)
    low = _LOW_BYTES.get(setup.precision)
    if low is not None and setup.stack == "megatron":
        # the products' inputs in low precision; attention keeps its output in bf16 for itself
        kept = replace(kept, norm_output=low, product=low, attention_output=kept.attention_output + low)
    if setup.recompute_granularity == "selective":
        kept = _selective(setup, kept)
    memory = _by_stack(setup, kept, element, low)
    if setup.mixed_precision:
        return memory
    all_low = {name: element for name in ("weights", "gradients", "reduced")}
    return replace(memory, **all_low, main_weights=0.0, optimizer=2 * element)


def _selective(setup: Setup, kept: Kept) -> Kept:
    """What is kept under selective recomputation.

    Megatron, and what is made like it, computes attention anew from queries, keys and values (Korthikanti et al. 2022,
    section 5): no scores. Torch's policy (torchtitan, distributed/activation_checkpoint.py) keeps attention's output
    and every other product's (queries, values, gate, the MLP's output, which a compiled block drops), what collectives
    give, and the layer's input.
    """
    if not setup.is_fsdp:
        return replace(kept, scores=0.0, softmax_statistics=0.0)
    kept = replace(kept, key=0.0, columns=kept.columns / 2, activated=0.0, product=0.0, scores=0.0)
    if setup.tensor_parallel_size == 1:
        return replace(kept, norm_output=0.0, norm_inputs=1 if setup.stack == "fsdp_compiled" else 2)
    # the MLP's output before it is summed over the ranks, whole, and two sums
    return replace(kept, norm_output=kept.norm_input / 2, norm_inputs=3)


def _by_stack(setup: Setup, kept: Kept, element: float, low: float | None) -> StackMemory:
    main = 0.0 if element == 4.0 else 4.0
    if setup.stack == "megatron":
        copies = 2 * low if low is not None else 0.0
        return StackMemory(kept, element, 4.0, main, logits=element, dummy_gradients=element, weight_copies=copies)
    if setup.stack == "megatron_2021":
        # DeepSpeed's bf16 optimizer of pipelines sums gradients in float32 besides, on every rank (bigscience, tr11
        # prequel); Megatron-LM of those years divided no state: who did had DeepSpeed's ZeRO and its buckets
        gradients = 8.0 if setup.precision == "bf16" and setup.pipeline_parallel_size > 1 else 4.0
        buckets = 0.0 if setup.sharding == "none" else _DEEPSPEED_BUCKETS
        return StackMemory(kept, element, gradients, main, logits=element + 8.0, keeps_sent=True, buckets=buckets)
    if setup.stack == "untuned":
        summed = 4.0 + (element if main else 0.0)
        return StackMemory(kept, element, summed, main, gathered=element, reduced=element, keeps_gathered=True)
    loss, into = element + (16.0 if setup.tensor_parallel_size > 1 else 12.0), 0.0
    if setup.loss == "compiled" and setup.tensor_parallel_size == 1:
        loss = 2 * element
    elif setup.loss == "chunked":
        loss, into = loss / _CHUNKS, 4.0
    return StackMemory(kept, 4.0, 4.0, 0.0, gathered=element, logits=loss, into_logits=into, keeps_gathered=True)
