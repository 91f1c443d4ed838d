"""The transformer's operations as hand-written forward and backward passes.

Why not leave the backward pass to autograd: the models of a scaling-law sweep are small, and what
they pay is the cost of many short operations. Each function below is one node of the graph, keeps
only what its backward pass needs, and adds weight gradients straight into `weight.grad` (a view of
one flat float32 buffer, see parallel/data.py), so that accumulation over micro-batches costs
nothing. They are for one tensor rank; the plain modules of scaling/model.py compute the same values on any number,
and tests/parallel/test_functions.py holds the two against each other in float64.

Weights arrive as parallel.tensor.Weights. Shapes: B sequences, T positions, M = B T tokens, H query heads, G
key/value heads (query groups),
R = H / G, K channels a head, D hidden, F feed-forward, V vocabulary. Weights are [out, in].
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Above it a float32 probability has its full relative precision, so the loss may be its logarithm.
_SMALLEST_PROBABILITY = 1e-30


class RMSNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang & Sennrich, 2019).

    With n = x / rms: dx = (g - n mean(g n)) / rms where g = dy weight, and dweight = sum(dy n).
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, weight_grad: Tensor | None, epsilon: float, dtype: torch.dtype
    ) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).mul_(1.0 / x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        ctx.weight_grad = weight_grad
        y = normed * weight
        return y if dtype == x.dtype else y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        normed, inverse, weight = ctx.saved_tensors
        dy = dy.to(normed.dtype)
        product = dy * normed
        dweight = product.flatten(0, -2).sum(0)
        if ctx.weight_grad is not None:
            ctx.weight_grad.add_(dweight)
            dweight = None
        # mean(dy weight n) = (product . weight) / D, one matrix-vector product
        mean = torch.mv(product.flatten(0, -2), weight).mul_(1.0 / weight.numel()).view(inverse.shape)
        dx = (dy * weight).addcmul_(normed, mean, value=-1.0).mul_(inverse)
        return dx, dweight, None, None, None


class Attention(torch.autograd.Function):
    """Causal grouped-query attention with rotary positions, from normed input to output projection.

    q, k, v = x Wq^T, x Wk^T, x Wv^T; q and k are rotated pairwise by position (Su et al., 2021), here
    as complex numbers; y = softmax(q k^T / sqrt(K) + mask) v Wo^T. The query heads of one group stack
    along the sequence axis, so key and value are never repeated.

    `rotation_q` and `rotation_k` are complex [T, 1, K/2]; the query's carries the factor 1/sqrt(K).
    `mask` is [R T, T], 0 or -inf. The weights are [(H + 2 G) K, D] and [D, H K]; x is [M, D].
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weights_qkv,
        weights_out,
        rotation_q: Tensor,
        rotation_k: Tensor,
        mask: Tensor,
        heads: int,
        groups: int,
    ):
        length, half = mask.shape[1], rotation_q.shape[-1]
        batch, size = x.shape[0] // length, 2 * half
        qkv = torch.mm(x, weights_qkv.matrix().t()).view(batch, length, heads + 2 * groups, size).to(mask.dtype)

        def rotated(part: Tensor, rotation: Tensor, count: int) -> Tensor:
            # written straight into [B, count, T, K/2], the order that the batched products want
            out = torch.empty(batch, count, length, half, dtype=rotation.dtype, device=x.device)
            torch.mul(torch.view_as_complex(part.unflatten(-1, (half, 2))), rotation, out=out.transpose(1, 2))
            return torch.view_as_real(out).view(batch * groups, -1, size)

        q = rotated(qkv[:, :, :heads], rotation_q, heads)
        k = rotated(qkv[:, :, heads : heads + groups], rotation_k, groups)
        v = qkv[:, :, heads + groups :].transpose(1, 2).reshape(batch * groups, length, size)
        p = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2)), -1)
        o = torch.bmm(p, v).view(batch, heads, length, size).transpose(1, 2).reshape(-1, heads * size).to(x.dtype)
        ctx.save_for_backward(x, q, k, v, p, o, rotation_q, rotation_k)
        ctx.weights_qkv, ctx.weights_out = weights_qkv, weights_out
        return torch.mm(o, weights_out.matrix().t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, q, k, v, p, o, rotation_q, rotation_k = ctx.saved_tensors
        length, size = v.shape[1:]
        batch, half = x.shape[0] // length, size // 2
        groups = v.shape[0] // batch
        heads = q.shape[1] // length * groups
        ctx.weights_out.add_gradient(dy, o)
        do = torch.mm(dy, ctx.weights_out.matrix()).view(batch, length, heads, size).transpose(1, 2)
        do = do.reshape(batch * groups, -1, size).to(p.dtype)
        dv = torch.bmm(p.transpose(1, 2), do)
        ds = torch._softmax_backward_data(torch.bmm(do, v.transpose(1, 2)), p, -1, p.dtype)
        dq = torch.bmm(ds, k)
        dk = torch.bmm(ds.transpose(1, 2), q)

        dqkv = torch.empty(batch, length, heads + 2 * groups, size, dtype=p.dtype, device=dy.device)

        def rotate_back(gradient: Tensor, rotation: Tensor, out: Tensor, count: int) -> None:
            # the transpose of multiplication by z is multiplication by its conjugate
            pairs = torch.view_as_complex(gradient.view(batch, count, length, half, 2)).transpose(1, 2)
            torch.mul(pairs, rotation.conj(), out=torch.view_as_complex(out.unflatten(-1, (half, 2))))

        rotate_back(dq, rotation_q, dqkv[:, :, :heads], heads)
        rotate_back(dk, rotation_k, dqkv[:, :, heads : heads + groups], groups)
        dqkv[:, :, heads + groups :] = dv.view(batch, groups, length, size).transpose(1, 2)
        dqkv = dqkv.view(x.shape[0], -1).to(x.dtype)
        ctx.weights_qkv.add_gradient(dqkv, x)
        return torch.mm(dqkv, ctx.weights_qkv.matrix()), None, None, None, None, None, None, None


class SwiGLU(torch.autograd.Function):
    """y = (silu(x Wg^T) * x Wu^T) Wd^T (Shazeer, 2020).

    The gate's and the up projection's weights are stacked, [2 F, D]; the down projection's are [D, F]; x is [M, D].
    """

    @staticmethod
    def forward(ctx, x: Tensor, weights_gate_up, weights_down) -> Tensor:
        both = torch.mm(x, weights_gate_up.matrix().t())
        gate, up = both.chunk(2, -1)
        activated = torch.nn.functional.silu(gate)
        product = activated * up
        ctx.save_for_backward(x, both, activated, product)
        ctx.weights_gate_up, ctx.weights_down = weights_gate_up, weights_down
        return torch.mm(product, weights_down.matrix().t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, both, activated, product = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        ctx.weights_down.add_gradient(dy, product)
        dproduct = torch.mm(dy, ctx.weights_down.matrix())
        dboth = torch.empty_like(both)
        dgate, dup = dboth.chunk(2, -1)
        torch.mul(dproduct, activated, out=dup)
        torch.ops.aten.silu_backward.grad_input(dproduct.mul_(up), gate, grad_input=dgate)
        ctx.weights_gate_up.add_gradient(dboth, x)
        return torch.mm(dboth, ctx.weights_gate_up.matrix()), None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over tokens of -log softmax(x W^T)[target], in float32 whatever the inputs' precision.

    The logits' gradient softmax - onehot replaces the logits in memory during the forward pass; the
    incoming gradient (1 / number of tokens in the global batch) multiplies the small [M, D] side.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weights, targets: Tensor) -> Tensor:
        matrix = weights.matrix()
        # not rounded to the factors' precision: a loss that laws are fitted to must not be
        logits = torch.mm(x, matrix.t()) if matrix.dtype != torch.bfloat16 else torch.mm(x.float(), matrix.float().t())
        dtype = logits.dtype
        p = torch.softmax(logits, -1, dtype=dtype)
        index = targets.reshape(-1, 1)
        p_target = p.gather(1, index)
        if p_target.min() > _SMALLEST_PROBABILITY:
            loss = p_target.log_().sum().neg_()
        else:  # the logarithm of what has underflowed must come from the logits
            loss = torch.log_softmax(logits, -1, dtype=dtype).gather(1, index).sum().neg_()
        dlogits = p
        dlogits.scatter_add_(1, index, torch.full(index.shape, -1.0, dtype=dlogits.dtype, device=x.device))
        ctx.save_for_backward(x, dlogits)
        ctx.weights = weights
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor):
        x, dlogits = ctx.saved_tensors
        dlogits = dlogits.to(x.dtype)
        scale = dloss.to(x.dtype)
        ctx.weights.add_gradient(dlogits, x * scale)
        return torch.mm(dlogits, ctx.weights.matrix()).mul_(scale), None, None
